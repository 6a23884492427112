"""Write the study of opponents that follow the net: what each way of training withstands, and what it costs."""

from pathlib import Path

import pandas as pd
from scipy.stats import t

from sparring import evolving, statistics
from sparring.layout import HERE, Layout
from sparring.params.evolving import Study
from sparring.report.escape import markdown as escaped
from sparring.report.figure import canvas, line_look, shared_legend
from sparring.report.publish import replacing
from sparring.report.table import Table, markdown, number, records, save, with_interval
from sparring.training.collapse import collapsed_at

CURVE, TABLE = "evolving_curve", "evolving"
OURS, PEERS = "evolving", ("online_pgd10", "nfgsm", "online_fgsm")
FIGURES = {"clean": "clean", "pgd50": "PGD", "autoattack": "AutoAttack", "stored": "stored attacks, mean"}
COUNTS = {"clean": "shown", "pgd50": "tested", "autoattack": "tested", "stored": "shown"}  # of images


def write(study: Study, layout: Layout = HERE) -> None:
    """Write rows.csv, the table, the picture and report.md from the trainings that there are, and print one line."""
    rows, histories = evolving.rows(study, layout), evolving.histories(study, layout)
    summary_table = table(rows)
    with replacing(layout.study_reports(evolving.STUDY)) as folder:
        save(summary_table, folder, folder / "tex")
        rows.to_csv(folder / "rows.csv", index=False, float_format="%.6g", lineterminator="\n")
        draw(rows, histories, folder)
        (folder / "report.md").write_text(_page(study, rows, histories, summary_table), encoding="utf-8", newline="\n")
    print(f"evolving: {len(rows)} of {len(study.trainings)} trainings", flush=True)


def table(rows: pd.DataFrame) -> Table:
    """Return the table: one row per method, radius and length of training, with means over its seeds."""
    tidy = summary(rows)
    wide = [
        {
            "method": row.method,
            "eps": f"{row.eps}/255",
            "epochs": f"{row.epochs}",
            "trainings": f"{row.trainings}",
            **{title: _cell(row, figure) for figure, title in FIGURES.items()},
            "training, s": number(row.seconds, 0),
            "passes an image": f"{row.passes_per_image}",
        }
        for row in records(tidy)
    ]
    columns = ["method", "eps", "epochs", "trainings", *FIGURES.values(), "training, s", "passes an image"]
    notes = [
        "PGD and AutoAttack are aimed at the net itself, at the radius that it was trained for. Means over trainings, "
        "± their standard deviation; in brackets 95 % intervals over images and trainings, where there is but one "
        f"training with a spread of {statistics.SPREAD:.3f} that is assumed. Clean accuracy and that under the stored "
        "attacks are of all test images. Passes: forward passes of the net, or as much work, for an image that is "
        "visited; plain training makes 3. Times, the monitor's included, are comparable only where the processor is "
        "the same and as busy: rows.csv has it. Attacks made anew meet the net in eval mode here, and in training "
        "mode in the code published with FGSM-RS and N-FGSM.",
    ]
    caption = "Nets trained against attacks that are made anew, that follow the net, and that are stored."
    return Table(TABLE, caption, tidy, {"": pd.DataFrame(wide, columns=columns)}, notes)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, by method, eps and epochs, trainings, mean, sd and 95 % interval of each of FIGURES, and mean seconds."""
    summaries = []
    for (method, eps, epochs), group in rows.groupby(["method", "eps", "epochs"], sort=False):
        facts = {"method": method, "eps": eps, "epochs": epochs, "trainings": len(group)}
        for figure in FIGURES:
            value, sd = float(group[figure].mean()), float(group[figure].std())
            images = int(group[COUNTS[figure]].iloc[0])
            low = high = value
            if trainings := int(group[figure].notna().sum()):
                low, high = statistics.wilson(round(value * images), images)
                low, high = statistics.over_trainings(value, low, high, sd, trainings)
            facts |= {figure: value, f"{figure}_sd": sd, f"{figure}_low": max(low, 0.0), f"{figure}_high": high}
        summaries.append(facts | {name: group[name].mean() for name in ("seconds", "passes_per_image")})
    columns = ["method", "eps", "epochs", "trainings"]
    columns += [f"{figure}{end}" for figure in FIGURES for end in ("", "_sd", "_low", "_high")]
    frame = pd.DataFrame(summaries, columns=[*columns, "seconds", "passes_per_image"])
    return frame.astype({"passes_per_image": int})


def _cell(row: object, figure: str) -> str:
    return with_interval(*(getattr(row, f"{figure}{end}") for end in ("", "_low", "_high", "_sd")))


def against(rows: pd.DataFrame, eps: int, epochs: int, peer: str) -> str:
    """Compare our method with another in words, seed by seed; empty where no seed has both."""
    trainings = rows[(rows["eps"] == eps) & (rows["epochs"] == epochs)].set_index("seed")
    ours, theirs = (trainings[trainings["method"] == name] for name in (OURS, peer))
    seeds = ours.index.intersection(theirs.index)
    if seeds.empty:
        return ""
    parts = []
    for figure in ("autoattack", "pgd50", "clean"):
        difference = (ours.loc[seeds, figure] - theirs.loc[seeds, figure]).dropna()
        if len(difference) > 1:
            half = t.ppf(0.975, len(difference) - 1) * difference.std() / len(difference) ** 0.5
            mean = difference.mean()
            parts.append(f"{FIGURES[figure]} {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]")
        elif len(difference):
            parts.append(f"{FIGURES[figure]} {difference.iloc[0]:+.3f}")
    same_processors = ours.loc[seeds, "processor"].eq(theirs.loc[seeds, "processor"]).all()
    share = ours.loc[seeds, "seconds"].sum() / theirs.loc[seeds, "seconds"].sum()
    time = f"in {share:.2f} of the time" if same_processors else "on other processors, so that times say nothing"
    caveat = "; one seed, which proves nothing about a method" if len(seeds) == 1 else ""
    return f"{escaped(OURS)} minus {escaped(peer)}, {eps}/255, {epochs} epochs, seeds {_joined(seeds)}: " + (
        f"{', '.join(parts)}; {time}{caveat}."
    )


def _joined(seeds: pd.Index) -> str:
    return ", ".join(str(seed) for seed in seeds)


def draw(rows: pd.DataFrame, histories: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw accuracy under PGD on validation images over the time of training.

    There is a panel for each radius, a colour for each method, and a line for each training with the most epochs.
    """
    longest = rows[rows["epochs"] == rows["epochs"].max()] if len(rows) else rows
    radii = sorted(longest["eps"].unique()) or [0]
    methods = list(dict.fromkeys(longest["method"]))
    with canvas(folder, CURVE, 1.5 + 3.6 * len(radii), 3.6, methods, picture=True) as figure:
        for axes, eps in zip(figure.subplots(1, len(radii), sharey=True, squeeze=False)[0], radii, strict=True):
            for row in records(longest[longest["eps"] == eps]):
                history = histories[row.training]
                measured = history.dropna(subset="pgd_accuracy") if "pgd_accuracy" in history else history[:0]
                minutes = (measured["epoch"] + 1) / row.epochs * row.seconds / 60
                look = line_look(methods.index(row.method)) | {"marker": "o", "markersize": 3, "linewidth": 1.2}
                axes.plot(minutes.to_numpy(), measured["pgd_accuracy"].to_numpy(), label=row.method, **look)
            axes.set(xlabel="minutes of training", title=f"{eps}/255" if eps else "no rows yet")
            axes.set_ylim(bottom=0)
        figure.axes[0].set_ylabel("accuracy under PGD, validation images")
        shared_legend(figure, 4)


def _page(study: Study, rows: pd.DataFrame, histories: dict[str, pd.DataFrame], summary_table: Table) -> str:
    missing = [name for name in study.trainings if name not in set(rows["training"])]
    compared = [
        text
        for eps, epochs in sorted(set(zip(rows["eps"], rows["epochs"], strict=True)))
        for peer in PEERS
        if (text := against(rows, eps, epochs, peer))
    ]
    collapsed = [
        f"{escaped(name)} collapsed in epoch {epoch}."
        for name, history in histories.items()
        if (epoch := collapsed_at(history.to_dict("records")))
    ]
    parts = [
        "# Opponents that follow the net",
        "What the methods are, and what was found: [docs/robust_training.md](../../../docs/robust_training.md).",
        "\n".join(f"- {line}" for line in [*compared, *collapsed]) or "No two methods are there to be compared yet.",
        *([f"**Not made yet**: {', '.join(map(escaped, missing))}."] if missing else []),
        f"![Accuracy under PGD over the time of training.](figures/{CURVE}.png)",
        markdown(summary_table).rstrip(),
    ]
    return "\n\n".join(parts) + "\n"

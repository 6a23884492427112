"""The command line: `sparring COMMAND --help`, or `python -m sparring COMMAND --help`, explains each command."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparring import params, profiles
from sparring.data.sources import existing_path
from sparring.layout import HERE, Layout, replacing
from sparring.params.errors import InputError, validated
from sparring.params.names import CLEAN, PARAMS_FILE
from sparring.params.sections import READ_FROM_PATH

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


# Options that two commands have.
NETWORK = Annotated[
    str | None,
    typer.Option(metavar="NET", help="What the file holds: resnet18, and the like."),
]
MEAN = Annotated[str | None, typer.Option(metavar="M,M,M", help="What the model wants subtracted.")]
STD = Annotated[str | None, typer.Option(metavar="S,S,S", help="What it wants divided by after that.")]


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends in one line on standard error and exit code 1."""
    try:
        app(arguments, prog_name=_program())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _program() -> str:
    """Return the command that was typed. Completion in a shell needs the name of the console script."""
    return "python -m sparring" if Path(sys.argv[0]).name == "__main__.py" else "sparring"


@app.callback(epilog="For example: sparring audit mine.safetensors --network resnet18 --data photos/")
def commands() -> None:
    """Train image classifiers against a stored gallery of opponents, and audit models.

    `sparring` and `python -m sparring` are the same.
    """


@app.command(epilog="For example: sparring profile paper --set training.epochs=30 --set attacks.bim.steps=10")
def profile(
    name: Annotated[str, typer.Argument(help="A file of profiles/, without .yaml.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value on top of the profile; may be given several times."),
    ] = None,
) -> None:
    """Write params.yaml from a profile and print what changed."""
    for line in profiles.apply(name, settings or []) or ["nothing changed"]:
        print(line)


@app.command(epilog="For example, after an update: sparring check --fill")
def check(
    fill: Annotated[
        bool, typer.Option("--fill", help="Add what the file of an older version lacks, with values as they were.")
    ] = False,
) -> None:
    """Validate params.yaml."""
    if fill:
        for line in profiles.fill() or ["nothing is missing"]:
            print(line)
    try:
        values = params.load()
    except InputError as error:
        absent = profiles.missing(params.read(PARAMS_FILE)) if "is missing" in str(error) else {}
        if not absent:
            raise
        raise InputError(
            f"{PARAMS_FILE}: {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing, perhaps as the "
            "file is of an older version; `python -m sparring check --fill` adds what is missing"
        ) from error
    if values.data.source in READ_FROM_PATH:
        try:
            existing_path(values.data)
        except InputError as error:  # DVC's cache may have what was made of them
            print(f"warning: {error}", file=sys.stderr)
    print(
        f"{PARAMS_FILE} is valid: data {values.data.source}; attacks {', '.join(values.attacks)}; "
        f"structures {', '.join(values.structures)}"
    )


# What follows imports torch or DVC inside the functions, as loading them takes longer than the other commands do.


@app.command(epilog="For example: sparring export ours ours.pt2")
def export(
    structure: Annotated[str, typer.Argument(help="One of structures; baseline is the pretrained net.")],
    file: Annotated[Path, typer.Argument(help="What to write; it ends in .pt2.")],
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Which of its trainings; the lowest of seeds by default.")
    ] = None,
) -> None:
    """Write a trained structure as a program of torch.export.

    It takes images in [0, 1], any number of them, and gives logits. torch.export.load reads it without Sparring.
    """
    from sparring.evaluation import exchange

    values = params.load()
    values.structure(structure)
    seeds = values.seeds_of(structure)
    if seed is not None and seed not in seeds:
        raise InputError(f"--seed {seed}: {structure} was trained with {', '.join(map(str, seeds))}")
    source = HERE.model(structure, seeds[0] if seed is None else seed)
    exchange.export(source, file)
    print(f"{file}: {structure}, from {source}")


@app.command(
    epilog="For example: sparring evaluate-model mine.safetensors --network "
    "'{name: resnet, blocks: [2, 2, 2, 2], width: 64}' --mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616"
)
def evaluate_model(
    path: Annotated[Path, typer.Argument(help="A .safetensors file, or a .pt2 file of torch.export.")],
    network: NETWORK = None,
    mean: MEAN = None,
    std: STD = None,
    data: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder with clean/, adversarial/ and unseen/.")
    ] = Path("data"),
    to: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where else the figures are written to.")
    ] = None,
) -> None:
    """Evaluate a model of your own on all stored images, clean and attacked.

    It takes images (N, 3, H, W) in [0, 1], normalised by --mean and --std where you give them, and gives logits.
    """
    from sparring import statistics
    from sparring.evaluation import exchange, foreign
    from sparring.report import table

    values = params.load()
    architecture = None if network is None else params.network(network, "--network")
    scaling = foreign.scaling(mean, std)
    rows = exchange.evaluate(values, path, architecture, scaling, Layout(images=data))
    rows = rows.assign(correct=rows["label"] == rows["prediction"])
    accuracy = statistics.accuracies(rows, ["split", "attack"])
    print(table.grid(table.own_model(values, accuracy)))
    clean = rows[rows["attack"] == CLEAN]
    if (guessed := statistics.as_if_guessed(clean)) is not None:
        print(f"warning: {foreign.guessing_sentence(path, clean, guessed)}", file=sys.stderr)
    if to is not None:
        with replacing(to) as temporary:
            figures = accuracy[["accuracy", "ci_low", "ci_high", "images"]].reset_index().to_dict("records")
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


@app.command(
    epilog="For example: sparring audit mine.safetensors --network resnet18 --data photos/ --image-size 224 "
    "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
)
def audit(
    model: Annotated[
        str,
        typer.Argument(
            help="A .safetensors file, a .pt2 file of torch.export, or python:MODULE:FUNCTION: your own code, which is "
            "run and gives a torch.nn.Module."
        ),
    ],
    data: Annotated[str, typer.Option(metavar="PATH", help="A folder per class, a .parquet file, cifar10:FOLDER.")],
    network: NETWORK = None,
    mean: MEAN = None,
    std: STD = None,
    eps: Annotated[str, typer.Option(metavar="RADIUS", help="As 8/255; for l2 a length.")] = "8/255",
    norm: Annotated[str, typer.Option(metavar="NORM", help="linf or l2.")] = "linf",
    images: Annotated[int, typer.Option(metavar="N", help="Images, evenly from the classes.")] = 1000,
    image_size: Annotated[int | None, typer.Option(metavar="PIXELS", help="The side that the model reads.")] = None,
    minutes: Annotated[float, typer.Option(metavar="N", help="How long it may take.")] = 10,
    batch_size: Annotated[str, typer.Option(metavar="N", help="Images at a time.")] = "auto",
    transfer_from: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Images that break it are tried on yours.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the page goes.")] = Path("audit"),
    fail_under: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Exit status 3 below this accuracy.")
    ] = None,
) -> None:
    """Attack a model of your own and write a page on its robustness.

    It takes images (N, 3, H, W) in [0, 1], normalised by --mean and --std where you give them, and gives logits.
    Stopped or out of time, it keeps what it has: the same command goes on from there.
    """
    import shlex

    from sparring import audit as audits
    from sparring.evaluation import foreign

    numbers = {"images": images, "image_size": image_size, "minutes": minutes, "fail_under": fail_under}
    validated(audits.Limits, numbers, "audit")
    architecture = None if network is None else params.network(network, "--network")
    options = audits.Options(
        model=model,
        data=data,
        network=architecture,
        scaling=foreign.scaling(mean, std),
        norm=norm,
        eps=audits.radius(eps, norm),
        images=images,
        minutes=minutes,
        out=out,
        batch_size=audits.batch_size(batch_size),
        image_size=image_size,
        transfer_from=transfer_from,
        command=f"python -m sparring {shlex.join(sys.argv[1:])}",
    )
    facts = audits.audit(options)
    if fail_under is not None and facts.worst["accuracy"] < fail_under:
        accuracy = f"{facts.at_most}{facts.worst['accuracy']:.3f}"
        print(f"robust accuracy {accuracy} is below --fail-under {fail_under:g}", file=sys.stderr)
        raise typer.Exit(3)


@app.command(epilog="For example: sparring certify masked noisy --images 200 --samples 10000")
def certify(
    structures: Annotated[
        list[str], typer.Argument(metavar="STRUCTURE…", help="Of structures, those whose transform is mask or noise.")
    ],
    images: Annotated[int, typer.Option(metavar="N", help="Test images, evenly from the classes.")] = 100,
    samples: Annotated[int, typer.Option(metavar="N", help="Votes that are counted for each image.")] = 1000,
    selection: Annotated[int, typer.Option(metavar="N", help="Other votes, which choose the class.")] = 100,
    alpha: Annotated[float, typer.Option(metavar="P", help="Probability of a wrong certificate, an image.")] = 0.001,
) -> None:
    """Certify trained structures against any change within a radius, and write reports/certified/.

    Noise certifies a radius in L2, a mask one in L0, the number of changed positions.
    """
    from sparring.evaluation import certify
    from sparring.report import certified

    values = params.load()
    numbers = {"images": images, "samples": samples, "selection": selection, "alpha": alpha}
    sampling = validated(certify.Sampling, numbers, "certify")
    names = list(dict.fromkeys(structures))
    for name in names:
        certify.certificate(values, name)  # all that is refused is, before anything runs
    for name in names:
        certify.certify(values, name, sampling)
    certified.write(values, names, sampling)


@app.command(epilog="For example: sparring compare workspace main tined-moss")
def compare(
    revisions: Annotated[
        list[str],
        typer.Argument(metavar="REV…", help="Experiments, branches, tags or commits; workspace: files as now."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the tables go as .md, .csv and .tex.")
    ] = None,
) -> None:
    """Print the tables of several experiments or commits side by side."""
    from sparring.report import compare
    from sparring.report.table import markdown, save

    tables = compare.compare(revisions)
    print("\n".join(markdown(table) for table in tables), end="")
    if out is not None:
        for table in tables:
            save(table, out, out)


if __name__ == "__main__":
    main()

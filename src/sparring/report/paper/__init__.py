"""The published figures of the paper (arXiv 2204.11596v2) and of the article on masks and padding, with notes."""

from pathlib import Path
from typing import Any

import pandas as pd

from sparring.params import Params
from sparring.params.names import CLEAN
from sparring.report import escape
from sparring.store import Images

FOLDER = Path(__file__).parent
RESTORED = (
    "The cells of the paper's Table 4 were put back in order by checking them against its Table 2; its baseline row is "
    "the doubtful one. Its figures fit pixels that were cut down to integers and stored without loss (recomputed: "
    "DeepFool .253, C&W .159), not the JPEG files that its code writes (.631, .562). Its mixture takes classes 0 to 4 "
    "clean and 5 to 9 attacked, so Table 2 is no mean of Table 4."
)


def intensity() -> "pd.Series[Any]":
    """Return Table 1: the intensity of each attack, in the units of the authors' code."""
    return pd.read_csv(FOLDER / "table1_intensity.csv").set_index("attack")["value"]


def mixture(params: Params) -> "pd.Series[Any]":
    """Return accuracy by structure from Table 2, on the mixture with our adversarial share; empty where it has none."""
    published = pd.read_csv(FOLDER / "table2_mixture.csv")
    return published[published["adv_ratio"] == params.mixture.adv_ratio].set_index("structure")["accuracy"]


def ablation() -> pd.DataFrame:
    """Return Table 3: columns input, adv_ratio, layers, detector_accuracy, classification_accuracy."""
    return pd.read_csv(FOLDER / "table3_ablation.csv")


def per_attack() -> pd.DataFrame:
    """Return Table 4: columns structure, attack and `paper`, which is the accuracy."""
    published = pd.read_csv(FOLDER / "table4_per_attack.csv")
    return published.melt("structure", var_name="attack", value_name="paper")


def masking() -> pd.DataFrame:
    """Return Tables 3 to 6 of the article on masks and padding.

    Columns: table, dataset, network, mask_percent (nan but in Table 5), attack and article, an accuracy in 0 to 1.
    `unstated` stands for the data set of the faces in Table 6, which the article does not name, and for the network of
    the signs in Table 5, whose number is illegible.
    """
    parts = []
    for path in sorted(FOLDER.glob("mask_padding_table*.csv")):
        published = pd.read_csv(path).rename(columns={"no_attack": CLEAN})
        table = int(path.stem.removeprefix("mask_padding_table")[0])
        if table == 5:
            published["network"] = published["network"].replace("dnn1", "unstated")
        keys = [name for name in ("dataset", "network", "mask_percent") if name in published]
        part = published.melt(keys, var_name="attack", value_name="article")
        parts.append(part.assign(table=table, article=part["article"] / 100))
    columns = ["table", "dataset", "network", "mask_percent", "attack", "article"]
    return pd.concat(parts, ignore_index=True)[columns]


def detector(params: Params) -> float | None:
    """Return the accuracy of a detector with these settings and this adversarial share; None where Table 3 has none."""
    table = ablation()
    settings, ratio = params.detector, params.mixture.adv_ratio
    rows = (table["input"] == settings.input) & (table["layers"] == settings.layers) & (table["adv_ratio"] == ratio)
    published = table.loc[rows, "detector_accuracy"]
    return float(published.iloc[0]) if len(published) else None


def note(params: Params, clean: dict[str, Images]) -> str:
    """Say which data, network and epochs the paper's accuracies come from, and which ours."""
    source = escape.markdown(clean["train"].metadata["source"])
    text = (
        "The paper's figures are for CIFAR-10, a ResNet-34 and 150 epochs (arXiv 2204.11596v2); ours are for "
        f"{source} ({len(clean['train'])} training, {len(clean['test'])} test, {len(clean['heldout'])} held-out "
        f"images), {params.network.words}, "
        f"and {params.training.epochs} epochs."
    )
    if params.data.source != "cifar10":
        text += " On another data set the paper's figures are for orientation only."
    return text

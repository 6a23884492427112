"""The articles' figures, as published (arXiv 2204.11596v2, and `masking` another's), and what is to be said of them."""

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
    """Table 1: a number for each attack."""
    return pd.read_csv(FOLDER / "table1_intensity.csv").set_index("attack")["value"]


def mixture(params: Params) -> "pd.Series[Any]":
    """Table 2: accuracy by structure on a mixture like ours; empty where it has none with that share."""
    published = pd.read_csv(FOLDER / "table2_mixture.csv")
    return published[published["adv_ratio"] == params.mixture.adv_ratio].set_index("structure")["accuracy"]


def ablation() -> pd.DataFrame:
    """Table 3: input, adv_ratio, layers, detector_accuracy, classification_accuracy."""
    return pd.read_csv(FOLDER / "table3_ablation.csv")


def per_attack() -> pd.DataFrame:
    """Table 4: accuracy in the column `paper`, by structure and attack."""
    published = pd.read_csv(FOLDER / "table4_per_attack.csv")
    return published.melt("structure", var_name="attack", value_name="paper")


def masking() -> pd.DataFrame:
    """The second article's Tables 3 to 6: table, dataset, network, mask_percent (nan but in Table 5), attack, article,
    which is an accuracy of 0 to 1.

    `unstated` is the data set of the faces in Table 6, and the network of Table 5's signs, whose number is illegible.
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
    """The accuracy of a detector with these settings, where Table 3 has one."""
    paper = ablation()
    settings, ratio = params.detector, params.mixture.adv_ratio
    same = (paper["input"] == settings.input) & (paper["layers"] == settings.layers) & (paper["adv_ratio"] == ratio)
    published = paper.loc[same, "detector_accuracy"]
    return float(published.iloc[0]) if len(published) else None


def note(params: Params, clean: dict[str, Images]) -> str:
    """What the article's figures were measured on, and what ours."""
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

"""Names of the user's in all that the report writes: any text is shown as it is, and breaks nothing."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import finished_run
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import inside
from finished_run import FIGURES, leave_undrawn, make_project, write_results
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure
from PIL import Image
from ruamel.yaml import YAML
from structures import words
from test_page import Checked

from sparring import params as parameters
from sparring import store
from sparring.data import prepare
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import EVALUATED_SPLITS
from sparring.report import escape, figure, lettering, page, render, table

PIECES = ["$", "_", "__", "|", "<b>", "</script>", "<!--", "\\", "\\|", '"', "'", "`", "*", "#", "&amp;", "&", "%", "~"]
PIECES += [
    "{",
    "}",
    "^",
    "[",
    "](x)",
    "]: x",
    "\n",
    "\r",
    "\t",
    " ",
    "\u2028",
    "\x00",
    "\udcff",
    "-",
    "1. ",
    "> ",
    "![",
]
PIECES += ["cat", "é", "漢字", "שלום", "مرحبا", "\u202e", "😀", "👩\u200d👧", "☺\ufe0f", "𝕒", "\u0301", "a" * 40]
# Of YAML and of tables; folders can have names that are no UTF-8.
WORDS = st.lists(st.sampled_from([piece for piece in PIECES if piece != "\udcff"]), max_size=6).map("".join)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=12)
DRAWN = ("gallery", "confusion", "failures")  # the figures that show classes
ENTITIES = {command: character for character, command in escape.LATEX.items()}


def paragraphs(text: str) -> list[str]:
    """Return what a reader of Markdown sees in each block. Raises ValueError where one is no plain paragraph."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    texts = []
    for token in reader.parse(text):
        if token.type not in ("paragraph_open", "paragraph_close", "inline"):
            raise ValueError(token.type)
        texts += [plain(token)] if token.type == "inline" else []
    return texts


def plain(token: Token) -> str:
    kinds = {child.type for child in token.children or []} - {"text"}
    if kinds:
        raise ValueError(f"{kinds} in {token.content}")
    return "".join(child.content for child in token.children or [])


def cells(text: str) -> list[list[str]]:
    """Return the rows of the tables in Markdown, with cells as a reader sees them."""
    rows: list[list[str]] = []
    inside_table = False
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        inside_table = token.type == "table_open" or (inside_table and token.type != "table_close")
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and inside_table:
            rows[-1].append(plain(token))
    return rows


@given(TEXTS)
@settings(deadline=None)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    printable = escape.printable(text)
    escaped = escape.markdown(text)
    assert paragraphs(f"x {escaped} y {escaped} z") == [f"x {printable} y {printable} z"]
    assert paragraphs(f"{escape.markdown(text.strip())}, y") == [f"{escape.printable(text.strip())}, y"]


def test_markdown_leaves_figures_and_plain_names_alone() -> None:
    for text in (
        "online_pgd",
        "pgd_l2",
        "0.841 ± 0.006 [0.800, 0.875]",
        "<0.001 (3 : 4)",
        "-",
        "+0.1 [+0.0, +0.2]",
        "C#",
    ):
        assert escape.markdown(text) == text
    assert escape.markdown("a|b\n*c*") == r"a\|bU+000A\*c\*"
    assert escape.markdown("# a") == r"\# a" and escape.markdown("12. a") == r"12\. a"


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), WORDS)
@settings(deadline=None)
def test_a_table_in_markdown_keeps_its_cells(rows: list[tuple[str, str]], heading: str) -> None:
    frame = pd.DataFrame(rows, columns=[heading, "other"])
    expected = [[heading, "other"], *map(list, rows)]
    odd = table.plain("odd", "A caption.", frame)
    for text in (table.grid(frame), table.markdown(odd)):
        assert cells(text) == [[escape.printable(cell).strip() for cell in row] for row in expected]


def read_latex(text: str) -> str:
    """Return what TeX prints of escaped text. Raises ValueError where a character is not escaped."""
    printed, place = "", 0
    pattern = re.compile(r"\\[a-z]+\{\}|\\[&%$#_{}]|\{([\[*])\}|([^\\&%$#_{}~^<>|`])")
    while place < len(text):
        token = pattern.match(text, place)
        if token is None:
            raise ValueError(text[place:])
        printed += token[1] or token[2] or ENTITIES[token[0]]
        place = token.end()
    return printed


@given(TEXTS)
@settings(deadline=None)
def test_latex_prints_text_as_it_is(text: str) -> None:
    known = [letter <= "\u017f" or letter in escape.LATEX_KNOWS for letter in text]
    codes = [letter if is_known else escape.code_point(letter) for letter, is_known in zip(text, known, strict=True)]
    escaped = escape.latex(text)
    assert read_latex(escaped) == escape.printable("".join(codes))
    assert not escaped.startswith(("[", "*"))


def test_latex_escapes_headings_captions_and_columns() -> None:
    frame = pd.DataFrame({"50 % of a_b": ["$x$ & y", "[z]\\"]})
    text = table.latex(table.Table("odd", "Of {a_b}.", frame, {"my_net #1": frame}))
    assert r"\caption{Of \{a\_b\}. my\_net \#1.}" in text
    assert "50 \\% of a\\_b \\\\\n" in text
    assert "\\$x\\$ \\& y \\\\\n{[}z]\\textbackslash{} \\\\\n" in text


@contextmanager
def quiet() -> Iterator[None]:
    """Turn warnings inside the block into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def draw(folder: Path, texts: list[str]) -> bytes:
    with quiet(), figure.canvas(folder, "names", 4, 0.3 * len(texts), texts) as drawing:
        for number, text in enumerate(texts):
            for left, weight in ((0.0, "normal"), (0.5, "bold")):
                drawing.text(left, number / len(texts), text, weight=weight)
    return (folder / "vector/names.svg").read_bytes()


@given(st.lists(TEXTS, min_size=1, max_size=20))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(PIECES)
def test_figures_draw_every_name_short(tmp_path: Path, names: list[str]) -> None:
    texts = [lettering.short(name) for name in names]
    assert all(len(text) <= 12 and "\n" not in text for text in texts)
    draw(tmp_path, texts)


def test_figures_fall_back_to_a_font_that_has_the_character_or_to_its_code_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    characters = lettering._characters("sans-serif")
    beyond = min(lettering._characters("STIXGeneral") - characters)  # matplotlib brings this font
    assert lettering.families(["cat", "$", "é"]) == ["sans-serif"]
    assert lettering.short(chr(beyond)) == chr(beyond) and len(lettering.families([chr(beyond)])) == 2
    assert lettering.short("a\U0010ffff") == "aU+10FFFF" and lettering.families(["aU+10FFFF"]) == ["sans-serif"]
    assert lettering.short("a\nb\udcff") == "aU+000Ab…"
    assert lettering.short(" ") == "U+0020" and lettering.short("a b") == "a b"
    assert lettering.short("\u202ecat") == "U+202Ecat"
    assert lettering.short("automobiles") == "automobiles" and lettering.short("x" * 13) == "x" * 11 + "…"
    drawing = draw(tmp_path, [lettering.short(chr(beyond))])
    assert drawing != draw(tmp_path, ["cat"]) and not caplog.records


def test_dollars_are_no_formula(tmp_path: Path) -> None:
    drawings = [draw(tmp_path, [text]) for text in ("$x$", r"\$x\$", "x")]
    assert len(set(drawings)) == 3  # as a formula, the first would be the third, in italics
    assert b"<!-- $x$ -->" in drawings[0]
    assert Figure().text(0, 0, "$x$").get_parse_math()  # elsewhere matplotlib is as it was


def test_right_to_left_names_leave_their_neighbours_be() -> None:
    assert page.isolated("cat") == "cat"
    assert page.isolated("שלום") == "\u2068שלום\u2069" and page.isolated("\u202ecat") == "\u2068\u202ecat\u2069"


class Names(HTMLParser):
    """Collect the pictures' alternative texts, the JSON of the gallery, and the words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.alternatives: set[str] = set()
        self.data: list[Any] = []
        self.words = ""
        self._json = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.alternatives |= {attributes["alt"] or ""} if tag == "img" else set()
        self._json = tag == "script" and attributes.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._json:
            self.data.append(json.loads(data))
        self._json = False
        self.words += data


def rename(classes: list[str], source: str) -> None:
    """Rename the classes and the data set in the stores of clean and attacked images."""
    stores = (path for folder in ("clean", "adversarial", "unseen") for path in Path("data", folder).rglob("*.parquet"))
    for path in stores:
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[store.METADATA_KEY]) | {"classes": classes, "source": source}
        pq.write_table(table.replace_schema_metadata({store.METADATA_KEY: json.dumps(metadata)}), path)


def with_loss(params: Params, loss: str) -> Params:
    """Give the attack fgsm an argument `loss`, which may be any text."""
    attack = params.attacks["fgsm"]
    odd = attack.model_copy(update={"arguments": attack.arguments | {"loss": loss}})
    return params.model_copy(update={"attacks": params.attacks | {"fgsm": odd}})


def few(fgsm: str = "fgsm", bim: str = "bim") -> dict[str, Any]:
    """Return the default parameters with two attacks, of these names."""
    values = YAML(typ="safe").load(finished_run.ROOT / "profiles" / "digits.yaml")
    del values["structures"]["evolving"]
    names = {fgsm: "fgsm", bim: "bim"}
    attacks = {name: {"method": method} | values["attacks"][method] for name, method in names.items()}
    draws = {section: values[section] | {"weights": {}} for section in ("sampler", "fixed")}
    return values | draws | {"attacks": attacks, "unseen_attacks": {}}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """Make a finished run with two attacks in the current folder, all but the report."""
    with inside(tmp_path_factory.mktemp("names")):
        yield make_project(**few() | {"structures": {}})  # which leaves the pretrained net, and takes half as long


@pytest.fixture
def classes_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave all figures undrawn but those with classes: the others show no free name."""
    leave_undrawn(monkeypatch, {*FIGURES} - {*DRAWN})


def check_report(classes: list[str], free: str) -> None:
    """Check that every format shows the names, and that none is broken by them."""
    text = Path("reports/index.html").read_text(encoding="utf-8")
    checked = Checked()
    checked.feed(text)
    checked.close()
    assert checked.open == []
    names = Names(text)
    (gallery,) = names.data
    assert {image["label"] for image in gallery["images"]} == set(classes)
    assert {escape.printable(name, "\n") for name in classes} <= names.alternatives
    assert f"{escape.printable(free)}, a ResNet of" in " ".join(names.words.split("\n"))
    markdown = Path("reports/report.md").read_text(encoding="utf-8")
    for name in ("table1", "summary", "checks", "corruptions", "timings"):
        table = Path(f"reports/tables/{name}.md").read_text(encoding="utf-8")
        assert table.strip() in markdown
    settings_of = [
        row[1] for row in cells(Path("reports/tables/table1.md").read_text(encoding="utf-8")) if row[0] == "fgsm"
    ]
    assert settings_of and all(escape.printable(f"loss {free}").strip() in text_of_cell for text_of_cell in settings_of)
    for path in Path("reports/tex").glob("*.tex"):
        latex = path.read_text(encoding="utf-8").replace("\\{", "").replace("\\}", "")
        assert latex.count("{") == latex.count("}"), path
        rows = [line for line in latex.splitlines() if line.endswith(" \\\\")]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows if row}) <= latex.count("\\begin{tabular}"), path


@given(st.lists(TEXTS, min_size=4, max_size=4, unique=True), WORDS)
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@example(["$", "$$", "$$$", "</script><b>"], "a|b_ $x$ \\ <i>*c*\n# d")
@example(["漢字😀", "שלום", " ", "\udcff\n\x00"], "é 漢字 😀")
def test_a_report_shows_every_name(small: Params, classes_drawn: None, classes: list[str], free: str) -> None:
    rename(classes, free)
    with quiet():
        render.render(with_loss(small, free))
    check_report(classes, free)


def test_folders_called_like_prices_reach_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    classes = ["$", "$$", "$$$"]
    monkeypatch.setattr(finished_run, "CLASSES", classes)
    generator = np.random.default_rng(0)
    for name in classes:
        folder = tmp_path / "pri|ces" / name
        folder.mkdir(parents=True)
        for number in range(30):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    values = few()
    values["data"] |= {"source": "folder", "path": "pri|ces", "image_size": 8, "train": 30, "test": 30, "heldout": 30}
    values["data"]["validation"] = 0
    params = parameters.validate(values)
    prepare.prepare(params)
    clean = {split: store.read(Path(f"data/clean/{split}.parquet")) for split in ("train", *EVALUATED_SPLITS)}
    write_results(params, clean, generator)
    with quiet():
        render.render(params)
    labels = {image["label"] for image in Names(Path("reports/index.html").read_text()).data[0]["images"]}
    assert labels == set(classes)
    for name in DRAWN:
        drawing = Path(f"reports/vector/{name}.svg").read_text()
        assert "<!-- $$$ -->" in drawing or "<!-- $$$, taken for" in drawing


def test_long_names_of_structures_and_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    long = "x_" * 50
    structures = {
        long: words("sampler", detector="detector"),
        "a-_b": words("fixed"),
    }
    params = make_project(**few("y" * 100, "c_-d") | {"structures": structures})
    with quiet():
        render.render(params)
    shown = Names(Path("reports/index.html").read_text()).words
    assert long in shown and "y" * 100 in shown
    assert "a-_b" in shown and "Structures, trained on them" in shown


def test_a_name_too_long_for_a_file_is_one_line() -> None:
    values = YAML(typ="safe").load(finished_run.ROOT / "profiles" / "digits.yaml")
    values["structures"]["x" * 101] = words("sampler")
    with pytest.raises(InputError, match=r"structures\.x{20}… has 101 characters; files bear such names, so use 100"):
        parameters.validate(values)


def test_an_error_about_a_name_with_a_line_break_is_one_line() -> None:
    assert str(InputError("no image of class a\nb \udcff é; add some")) == r"no image of class a\nb \udcff é; add some"

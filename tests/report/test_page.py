"""The web page: that it is sound HTML and needs nothing from elsewhere, and what it does in a browser."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import inside
from finished_run import make_project
from PIL import Image

from sparring import store
from sparring.report import page, render
from sparring.report.page import Section
from sparring.report.table import plain

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "img", "input", "br", "hr", "link"}
# Before the page's own scripts: what goes wrong. After them: what a reader does, and what is then to be seen.
LISTEN = """<script>
window.problems = [];
addEventListener("error", event => problems.push(event.message || "a picture does not load"), true);
addEventListener("securitypolicyviolation", event => problems.push(event.violatedDirective + " " + event.blockedURI));
</script>"""
PROBE = """<script>
addEventListener("load", () => {
  const column = (table, number) => [...table.tBodies[0].rows].map(row => row.cells[number].textContent);
  const sorted = [...document.querySelectorAll("table.sortable")].map(table => [...table.tHead.rows[0].cells].map(
    (head, number) => {
      const states = [column(table, number)], order = [];
      for (let click = 0; click < 3; click++) {
        head.querySelector("button").click();
        states.push(column(table, number));
        order.push(head.getAttribute("aria-sort"));
      }
      return {states, order};
    }));
  const gallery = document.querySelector(".gallery");
  const shown = () => [...gallery.querySelectorAll(".shots figure")].map(
    shot => ({picture: shot.querySelector("img").src, text: shot.querySelector("figcaption").textContent}));
  const first = shown();
  const broken = [...document.images].filter(image => !(image.complete && image.naturalWidth)).length;
  gallery.querySelector("input[name$='-image'][value='1']").click();
  gallery.querySelector("input[name$='-attack'][value='2']").click();
  const found = {
    sorted, first, second: shown(), problems, broken,
    attack: gallery.querySelector("input[name$='-attack']:checked").parentElement.textContent,
    pixelated: getComputedStyle(gallery.querySelector(".shots img")).imageRendering,
    width: innerWidth, content: document.documentElement.scrollWidth,
    back: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  };
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
});
</script>"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a rendered report in reports/."""
    folder = tmp_path_factory.mktemp("page")
    with inside(folder):
        render.render(make_project())
    return folder


def look(project: Path, *options: str) -> dict[str, Any]:
    """Return what the probe sees in a copy of the page."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: what the page does in a browser is not tested")
    copy = project / "probed.html"
    text = (project / "reports" / "index.html").read_text().replace("<head>", f"<head>{LISTEN}", 1)
    copy.write_text(text.replace("</body>", f"{PROBE}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={project / 'browser'}"]
    command += ["--virtual-time-budget=10000", *options, "--dump-dom", copy.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    match = re.search(r'<pre id="probe">(.*?)</pre>', process.stdout, re.S)
    assert match, process.stderr[-2000:]
    state: dict[str, Any] = json.loads(html.unescape(match[1]))
    return state


def pixels(uri: str) -> np.ndarray:
    start = "data:image/png;base64,"
    assert uri.startswith(start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(start)))))


def value(text: str) -> float | str:
    match = re.match(r"<?([+-]?\d+(\.\d+)?)", text)
    return float(match[1]) if match else text


def test_the_page_works_in_a_browser(project: Path) -> None:
    probe = look(project, "--window-size=1200,900")
    assert probe["problems"] == [] and probe["broken"] == 0
    assert len(probe["sorted"]) >= 15
    for head in [head for table in probe["sorted"] for head in table]:
        original, ascending, descending, restored = head["states"]
        assert head["order"] == ["ascending", "descending", None]
        assert restored == original and sorted(ascending) == sorted(original) == sorted(descending)
        known = [text for text in original if text != "-"]
        for state in (ascending, descending):
            assert state[len(known) :] == ["-"] * (len(original) - len(known))
        numbers = [value(text) for text in ascending[: len(known)]]
        if all(isinstance(number, float) for number in numbers):
            assert numbers == sorted(numbers)
            assert [value(text) for text in descending[: len(known)]] == numbers[::-1]
        else:
            assert [text.lower() for text in ascending[: len(known)]] == sorted(text.lower() for text in known)
    assert probe["pixelated"] == "pixelated"
    clean, attacked, change = probe["second"]
    images = store.read(project / "data/clean/test.parquet")
    (row,) = np.flatnonzero((images.image == pixels(clean["picture"])).all((1, 2, 3)))
    attack = probe["attack"]
    stored = store.read(project / f"data/adversarial/{attack}/test.parquet")
    assert (pixels(attacked["picture"]) == stored.image[row]).all()
    assert f"under {attack}" in attacked["text"]
    factor = float(re.search(r"×(\d+)", change["text"])[1])  # type: ignore[index]
    expected = 127.5 + factor * (stored.image[row].astype(float) - images.image[row])
    assert np.abs(pixels(change["picture"]) - np.clip(expected, 0, 255)).max() <= 0.5
    rows = pd.read_parquet(project / "data/predictions/ours.parquet")
    rows = rows[(rows["index"] == images.index[row]) & (rows["attack"] == attack)]
    classes = images.metadata["classes"]
    assert f"ours: {classes[rows['prediction'].iloc[0]]}, 90%" in attacked["text"]
    assert f"labelled {classes[images.label[row]]}" in clean["text"]
    assert probe["first"] != probe["second"]


def test_the_page_fits_a_phone_and_a_dark_room(project: Path) -> None:
    light = look(project, "--window-size=390,844", "--blink-settings=preferredColorScheme=1")
    assert light["width"] <= 500 and light["content"] <= light["width"]
    assert (light["back"], light["problems"]) == ("rgb(255, 255, 255)", [])
    dark = look(project, "--window-size=390,844", "--blink-settings=preferredColorScheme=0")
    brightness = {name: sum(map(int, re.findall(r"\d+", dark[name])[:3])) / 3 for name in ("back", "ink")}
    assert brightness["back"] < 60 and brightness["ink"] > 200


class Checked(HTMLParser):
    """Record elements, and fail where another element is closed than was opened last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.links += [str(values[name]) for name in ("src", "href", "srcset", "poster", "data") if name in values]
        if "id" in values:
            assert values["id"] not in self.anchors
            self.anchors.add(str(values["id"]))
        assert not any(name.startswith("on") for name in values)
        assert tag != "img" or "alt" in values

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_sound_and_self_contained(project: Path) -> None:
    text = (project / "reports/index.html").read_text()
    checked = Checked()
    checked.feed(text)
    checked.close()
    assert checked.open == [] and text.startswith("<!doctype html>")
    for link in checked.links:
        assert link.startswith("data:") or link.removeprefix("#") in checked.anchors
    assert not re.search(r"url\(|@import|<link|<iframe", text)
    assert "default-src 'none'" in text
    words = "".join(checked.words)
    for table in Path(project / "reports/tex").glob("*.tex"):
        assert table.read_text().strip() in words, table
    for drawing in Path(project / "reports/vector").glob("*.svg"):
        assert b"<dc:date>" not in drawing.read_bytes()


def test_what_a_section_holds_is_text_and_not_markup(tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": ["<script>alert(1)</script>", "a & b"], "share": ["0.250 [0.100, 0.400]", "-"]})
    section = Section("Odd <names>", ["Some *emphasis*, and <b>none</b>.", plain("odd", "A <i>caption</i>.", frame)])
    text = page.html("T <1>", [section], tmp_path)
    assert "<em>emphasis</em>" in text and "&lt;b&gt;none&lt;/b&gt;" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "A &lt;i&gt;caption&lt;/i&gt;." in text
    assert '<section id="odd-names">' in text and "Odd &lt;names&gt;" in text and "T &lt;1&gt;" in text
    assert 'style="--share: 0.250"' in text
    assert page.markdown("T", [section], ()).startswith("# T\n\n## Odd <names>\n\nSome *emphasis*")


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_pictures_are_the_stored_pixels(dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, 256, size=(8, 6, 3)).astype(dtype)
    assert (pixels(page.png(image)) == np.rint(image.astype(float))).all()
    assert pixels(page.png(np.full((2, 2, 3), 300.0))).max() == 255

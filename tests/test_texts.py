"""What the texts say to readers leads somewhere: links, anchors and commands. README is short."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML
from test_command_line import GROUP
from test_house import ROOT, tracked

from sparring import profiles

WORDS_OF_README = 1200
SHELLS = ("sh", "bash")
# Programs that texts may name beside Sparring's own, DVC, make and python.
OTHERS = {"pip", "git"}


def texts() -> list[Path]:
    files = [file for file in tracked() if file.suffix == ".md"]
    assert ROOT / "README.md" in files and ROOT / "reports/report.md" in files
    return files


def anchors(text: Path) -> set[str]:
    """The anchors of a text's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_links_lead_to_files_that_git_keeps_and_to_their_headings() -> None:
    files = {path for file in tracked() for path in (file, *file.parents)}
    for text in texts():
        for link in re.findall(r"\]\(([^)\s]+)\)", text.read_text()):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (text.parent / path).resolve() if path else text
            assert target in files, f"{text}: {link}"
            assert not anchor or anchor in anchors(target), f"{text}: {link}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= WORDS_OF_README


def commands() -> list[tuple[Path, list[str]]]:
    """Every command in the texts' shell blocks and in their sentences, as words without comments."""
    lines = []
    for text in texts():
        for block in re.findall(rf"^```(?:{'|'.join(SHELLS)})\n(.*?)^```", text.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words:
                    end = next((place for place, word in enumerate(words) if word in ("&&", "|", ";", "&")), len(words))
                    lines.append((text, words[:end]))
                    words = words[end + 1 :]
        for span in re.findall(r"`((?:sparring|dvc|make|python|--set) [^`]+)`", without_code(text.read_text())):
            lines.append((text, [word for word in shlex.split(span) if "…" not in word]))
    return [(text, words) for text, words in lines if words]


def check_own(words: list[str]) -> None:
    """One of Sparring's commands: parsed as when it is called, and not run. A sentence may leave arguments out."""
    if words[0].startswith("--"):
        assert words[0] in {name for option in GROUP.params for name in option.opts}
        return
    try:
        GROUP.commands[words[0]].make_context(words[0], list(words[1:]))  # type: ignore[attr-defined]
    except typer.BadParameter as error:
        if type(error).__name__ != "MissingParameter":  # which typer does not export
            raise


@functools.cache
def help_of_dvc(*words: str) -> str:
    call = [sys.executable, "-m", "dvc", *words, "--help"]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout


def check_dvc(words: list[str]) -> None:
    keys = YAML(typ="safe").load(ROOT / "profiles/digits.yaml")
    for place, word in enumerate(words):
        if word in ("-S", "--set-param") and words[place + 1] != "KEY=VALUE":
            value = keys
            for key in words[place + 1].partition("=")[0].split("."):
                value = value[key]
    nested = words[0] in ("exp", "queue", "remote", "plots", "params", "artifacts")
    shown = help_of_dvc(*words[: 2 if nested else 1])
    for word in words:
        assert not word.endswith("dvc.yaml") or "NAME" in word or (ROOT / word).is_file(), f"there is no {word}"
        option = word.partition("=")[0]
        assert not option.startswith("--") or option in shown, f"dvc has no {option} here"


def check_script(words: list[str]) -> None:
    """A script of the project: it is there, and knows its options."""
    code = (ROOT / words[0]).read_text()
    for word in words[1:]:
        option = word.partition("=")[0].removeprefix("--")
        assert not word.startswith("--") or re.search(rf"\b{option.replace('-', '_')}\b|--{option}\b", code), word


def test_commands_are_such_as_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    checked = 0
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "profiles", "profiles")
    for text, words in commands():
        while re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        where = f"{text.relative_to(ROOT)}: {' '.join(words)}"
        program = Path(words[0]).name
        try:
            if program == "sparring" or words[:3] == ["python", "-m", "sparring"]:
                own = words[1:] if program == "sparring" else words[3:]
                if own:
                    check_own(own)
                if own[:1] == ["profile"] and len(own) > 1:
                    profiles.apply(own[1], [own[place + 1] for place, word in enumerate(own) if word == "--set"])
            elif program == "--set":
                profiles.apply("digits", [setting for setting in words[1::2] if setting != "KEY=VALUE"])
            elif program == "dvc":
                check_dvc([word for word in words[1:] if word != "--wait-for-lock"])
            elif program == "make":
                assert all(word in targets or "=" in word for word in words[1:])
            elif program == "python" and words[1].endswith(".py"):
                check_script(words[1:])
            elif program in ("python", "torchrun"):
                assert words[1] in ("-c", "-m") or program == "torchrun"
            else:
                assert program in OTHERS, "an unknown program"
        except (Exception, SystemExit) as error:
            pytest.fail(f"{where}: {error!r}")
        checked += 1
    assert checked > 30

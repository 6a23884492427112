"""`python -m sparring profile` writes params.yaml whole and valid, with its comments, or not at all."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from structures import words

from sparring import __main__ as command_line
from sparring import params

ROOT = Path(__file__).parent.parent
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
DIGITS = (ROOT / "profiles" / "digits.yaml").read_bytes()

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in a folder with the committed profiles.

    It returns exit code, output and errors.
    """
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "params.yaml").write_bytes(DIGITS)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            command_line.main(list(arguments))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def comments(text: str) -> list[str]:
    return re.findall(r"#.*", text.split("\n\n", 1)[1])


def test_committed_params_are_the_profile_digits() -> None:
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "params.yaml"], cwd=ROOT, capture_output=True)
    if changed.returncode == 1:
        pytest.skip("params.yaml is not as committed, which is what it is for")
    assert (ROOT / "params.yaml").read_bytes() == DIGITS


def test_digits_is_reproduced_byte_for_byte(run: Run) -> None:
    assert run("profile", "digits") == (0, "nothing changed\n", "")
    assert Path("params.yaml").read_bytes() == DIGITS


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_valid_and_leads_back_to_digits(name: str, run: Run) -> None:
    code, out, _ = run("profile", name)
    assert code == 0
    assert run("check")[1].startswith("params.yaml is valid: data ")
    assert f"This is the profile `{name}`.\n" in Path("params.yaml").read_text(encoding="utf-8")
    code, back, _ = run("profile", "digits")
    assert code == 0 and len(back.splitlines()) == len(out.splitlines())
    assert Path("params.yaml").read_bytes() == DIGITS


def test_paper_is_the_papers_experiment(run: Run) -> None:
    run("profile", "paper")
    values = params.load()
    assert values.data.model_dump(include={"source", "train", "validation", "test", "heldout"}) == {
        "source": "cifar10",
        "train": 45000,
        "validation": 0,
        "test": 5000,
        "heldout": 10000,
    }
    assert (values.network.blocks, values.network.width) == ([3, 4, 6, 3], 64)
    assert (values.training.epochs, values.training.batch_size, values.training.learning_rate) == (150, 64, 0.01)
    assert values.attacks["cw"].arguments == {"c": 1.0, "kappa": 0.0, "steps": 100, "learning_rate": 0.01} | {
        "search_steps": 1
    }
    assert (values.detector.input, values.detector.layers, values.sampler.adv_ratio) == ("full", 2, 0.5)


def test_settings_come_on_top_and_comments_and_layout_stay(run: Run) -> None:
    _, out, _ = run("profile", "paper", "--set", "sampler.adv_ratio=0.25", "--set", "training.epochs=3")
    assert "sampler.adv_ratio: 0.5 → 0.25\n" in out
    assert "training.epochs: 12 → 3\n" in out
    assert "network.blocks: [1, 1, 1, 1] → [3, 4, 6, 3]\n" in out
    assert "training.horizontal_flip: false → true\n" in out
    assert "training.momentum" not in out
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert comments(text) == comments(DIGITS.decode())
    assert "  adv_ratio: 0.25         # expected share" in text
    assert "  blocks: [3, 4, 6, 3]    # blocks a stage" in text
    assert "This is the profile `paper`, changed by --set.\n" in text
    assert len(text.splitlines()) == len(DIGITS.splitlines())


def test_settings_may_add_names_where_names_are_free(run: Run) -> None:
    code, out, err = run(
        *("profile", "digits", "--set", "attacks.pgd={method: torchattacks.PGD, eps: 3e-2}"),
        *("--set", "unseen_attacks.far.method=fgsm", "--set", "unseen_attacks.far.eps=0.1"),
        *(
            "--set",
            "structures.fixed={opponents: fixed, evolving: none, detector: none, transform: none}",
            "--set",
            "fixed.weights.pgd=2",
        ),
        *(
            "--set",
            "structures.online={opponents: online_pgd, evolving: none, detector: none, transform: none}",
            "--set",
            "online_pgd.steps=3",
        ),
    )
    assert (code, err) == (0, "")
    assert "attacks.pgd.eps: absent → 0.03\n" in out
    values = params.load()
    assert list(values.attacks)[-1] == "pgd" and values.attacks["pgd"].arguments["eps"] == 0.03
    assert values.unseen_attacks["far"].arguments == {"eps": 0.1}
    assert values.fixed.weights["pgd"] == 2
    assert list(values.structures) == ["baseline", "adv", "ours", "evolving", "fixed", "online"]
    assert values.structures["online"].opponents == "online_pgd" and values.online_pgd.steps == 3
    assert "unseen_attacks.far.eps: 0.1 → absent\n" in run("profile", "digits")[1]


def test_a_setting_may_be_a_fraction(run: Run) -> None:
    code, out, err = run("profile", "digits", "--set", "attacks.fgsm.eps=8/255", "--set", "detection.eps=4/255")
    assert (code, err) == (0, "") and "attacks.fgsm.eps: 0.025 → 8/255\n" in out
    assert "  fgsm: {eps: 8/255}" in Path("params.yaml").read_text(encoding="utf-8")
    assert params.load().attacks["fgsm"].arguments == {"eps": 8 / 255} and params.load().detection.eps == 4 / 255


@pytest.mark.parametrize("network", ["{name: dnn1, dropout: 0.5}", "{name: facenet, dropout: 0.6, width_factor: 1/4}"])
def test_a_network_with_other_keys_is_set_or_in_a_profile(network: str, run: Run) -> None:
    code, _, err = run("profile", "digits", "--set", f"network={network}")
    assert (code, err) == (0, "") and params.load().network == params.network(network, "network")
    assert run("check", "--fill")[1].startswith("nothing is missing\n")
    Path("profiles/other.yaml").write_text(f"network: {network}\n", encoding="utf-8")
    assert run("profile", "other") == (0, "nothing changed\n", "")
    run("profile", "digits")
    assert Path("params.yaml").read_bytes() == DIGITS


def test_setting_null_and_text(run: Run) -> None:
    run("profile", "digits", "--set", r"data.group_pattern=(\d+)_", "--set", "data.path=some folder")
    assert (params.load().data.group_pattern, params.load().data.path) == (r"(\d+)_", "some folder")
    assert "data.path: some folder → null\n" in run("profile", "digits", "--set", "data.path=")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope"], f"profile nope does not exist; use {', '.join(PROFILES)}"),
        (["../params"], "profile ../params does not exist"),
        (["digits", "--set", "seed"], "--set seed is not key=value; write it like --set sampler.adv_ratio=0.25"),
        (["digits", "--set", "=1"], "--set =1 is not key=value"),
        (["digits", "--set", "data.trian=3"], "--set data.trian: data.trian is not a key; did you mean train?"),
        (["digits", "--set", "none.x=3"], "--set none.x: none.x is not a key; use none"),
        (["digits", "--set", "seed.x=1"], "--set seed.x: seed is 0, not a section with keys"),
        (["digits", "--set", "seed=[1"], "--set seed: [1 is not a YAML value"),
        (["digits", "--set", "data.path=\udcff"], r"--set data.path: \udcff is not a YAML value"),  # not UTF-8
        (["digits", "--set", "sampler.adv_ratio=1.4"], "params.yaml: sampler.adv_ratio is 1.4; it is a share"),
        (["digits", "--set", "attacks.fgsm.epz=1"], "params.yaml: attacks.fgsm.epz is not a key; did you mean eps?"),
        (["paper", "--set", "seed=1", "--set", "device=gpu"], 'params.yaml: device is "gpu"; use auto, cpu'),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_file_alone(arguments: list[str], expected: str, run: Run) -> None:
    Path("params.yaml").write_text("mine: 1\n")
    code, out, err = run("profile", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {expected}") and err.count("\n") == 1
    assert Path("params.yaml").read_text() == "mine: 1\n"
    assert sorted(path.name for path in Path().iterdir()) == ["params.yaml", "profiles"]


def test_check_warns_of_images_that_are_not_there(run: Run) -> None:
    run("profile", "digits", "--set", "data.source=folder", "--set", "data.path=nowhere")
    code, out, err = run("check")
    assert code == 0 and out.startswith("params.yaml is valid")
    assert err.startswith("warning: params.yaml: data.path is nowhere; there is no ") and err.count("\n") == 1


@pytest.mark.parametrize("before", [None, "", "data: [1"])
def test_a_file_that_holds_no_parameters_is_replaced(before: str | None, run: Run) -> None:
    Path("params.yaml").unlink()
    if before is not None:
        Path("params.yaml").write_text(before)
    assert run("profile", "digits") == (0, "params.yaml is new: profile digits\n", "")
    assert Path("params.yaml").read_bytes() == DIGITS


def test_elsewhere_than_in_the_repository(run: Run) -> None:
    shutil.rmtree("profiles")
    assert run("profile", "digits")[2].startswith("error: profiles/digits.yaml is missing; run this in")


def test_as_a_program(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "sparring", "check"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "error: params.yaml is missing; run `python -m sparring profile digits` to make it\n"


def older(text: str) -> str:
    """Return the default file as it was before some of its keys existed."""
    text = re.sub(r"(?m)^  background: .*\n", "", text)
    text = re.sub(r"(?ms)^(store|mask|pretrained):.*?(?=^\S)", "", text)
    text = re.sub(r"(?m)^  baseline: .*\n", "", text)
    text = text.replace(", loss: cross_entropy", "").replace(
        "adv: {opponents: sampler, evolving: none, detector: none, transform: none}", "adv: {opponents: sampler}"
    )
    return text.replace("epochs: 12", "epochs: 7  # mine")


def test_a_file_of_an_older_version_is_told_what_it_lacks_and_filled(run: Run) -> None:
    path = Path("params.yaml")
    path.write_text(older(DIGITS.decode()), encoding="utf-8")
    before = path.read_bytes()
    code, out, err = run("check")
    missing = ["data.background", "store", "mask", "pretrained", "structures.baseline"]
    missing += [f"structures.adv.{word}" for word in ("evolving", "detector", "transform")]
    missing += [f"whitebox.attacks.{name}.loss" for name in ("pgd", "pgd_8", "pgd_l2")]
    assert code == 1 and err.count("\n") == 1 and not out
    assert err.startswith(f"error: params.yaml: {', '.join(missing)} are missing") and "check --fill" in err
    assert path.read_bytes() == before
    code, out, _ = run("check", "--fill")
    assert code == 0 and [line.split(": ")[0] for line in out.splitlines()[:-1]] == missing
    values, wanted = (YAML(typ="safe").load(text) for text in (path.read_text(encoding="utf-8"), DIGITS.decode()))
    wanted["training"]["epochs"] = 7
    assert values == wanted
    text = path.read_text(encoding="utf-8")
    assert "# mine" in text and "# images a row group" in text and text.index("\nstore:") < text.index("\nattacks:")
    assert run("check", "--fill")[1].startswith("nothing is missing\nparams.yaml is valid")


def test_a_misspelt_key_is_not_taken_for_a_missing_one(run: Run) -> None:
    path = Path("params.yaml")
    path.write_text(DIGITS.decode().replace("  epochs:", "  epoch:"), encoding="utf-8")
    before = path.read_bytes()
    for command in (("check",), ("check", "--fill")):
        code, _, err = run(*command)
        assert code == 1 and "training.epoch is not a key; did you mean epochs?" in err
        assert path.read_bytes() == before


def test_words_that_an_entry_leaves_out_are_filled_in(run: Run) -> None:
    assert run("profile", "digits", "--set", "structures.plain={opponents: fixed}")[0] == 0
    assert params.load().structures["plain"].model_dump() == words("fixed")

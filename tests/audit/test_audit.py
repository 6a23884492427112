"""An audit by its command: its figures agree with closed forms and with peers, and it says what it left out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from audited import DATA, NET, audited, grey, leave_undrawn, shorten, write_models, write_store
from safetensors.torch import save_file

import sparring
from sparring import __main__ as command_line
from sparring import store
from sparring.attacks import generation
from sparring.audit import images as audited_images
from sparring.audit import plan, run
from sparring.models import classifier, networks
from sparring.params.errors import InputError
from sparring.params.sections import Network

QUICK = ("--images", "24", "--minutes", "5")


@pytest.fixture(autouse=True)
def _few_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the attacks for all tests but those marked `whole`: AutoAttack's own numbers take a minute an audit."""
    if "whole" not in request.fixturenames:
        shorten(monkeypatch, STEPS=10, QUERIES=60, FEW_QUERIES=30, TARGETS=4, LEVELS=(4, 8, 12, 16, 32, 128))


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures in tests marked `drawn` only."""
    if "drawn" not in request.fixturenames:
        leave_undrawn(monkeypatch)


@pytest.fixture
def drawn() -> None:
    """A mark: the test needs drawn figures."""


@pytest.fixture
def whole() -> None:
    """A mark: the test needs all of AutoAttack."""


@pytest.fixture
def models(project: Path) -> None:
    write_models()


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """80 grey images of two classes in images.parquet, and a linear model that gets them right: the weights of its
    margin, and each image's margin."""
    monkeypatch.chdir(tmp_path)
    write_models()
    namespace: dict = {}
    exec(compile(Path("audited_models.py").read_text(), "models", "exec"), namespace)
    net = namespace["linear"]()
    images = grey(80)
    with torch.no_grad():
        margin = net(classifier.to_images(images.image, torch.device("cpu")))[:, 1].numpy()
    labelled = store.Images(images.index, (margin > 0).astype(np.int64), images.image)
    write_store(Path("images.parquet"), labelled, ["below", "above"])
    return net.weight.detach().numpy(), np.abs(margin)


def test_the_worst_case_of_a_linear_model_is_its_closed_form(linear: tuple[np.ndarray, np.ndarray]) -> None:
    weights, margin = linear
    for levels in (1, 2):
        stands = float((margin > levels / 255 * np.abs(weights).sum()).mean())
        assert 0.05 < stands < 0.95
        results = audited("python:audited_models:linear", "--data", "images.parquet", "--eps", f"{levels}/255")
        assert results["clean"]["accuracy"] == 1
        assert results["worst_case"]["accuracy"] == pytest.approx(stands, abs=1e-6)
        # A model of two classes: APGD-T's loss needs four.
        assert "This is **not AutoAttack**, of which APGD-T needs 4 classes or more." in results["verdict"]
        assert "APGD-T is not among them: its loss compares 4 classes, and the model has 2." in (
            Path("audit/audit.md").read_text()
        )


def test_the_least_change_of_a_linear_model_is_its_closed_form(
    linear: tuple[np.ndarray, np.ndarray], whole: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, QUERIES=100, FEW_QUERIES=50)
    weights, margin = linear
    distance = margin / np.linalg.norm(weights)
    eps = float(np.median(distance))
    results = audited("python:audited_models:linear", "--data", "images.parquet", "--eps", f"{eps}", "--norm", "l2")
    # To store a change costs a little, as it is rounded: images that near to the boundary may stand.
    near = np.abs(distance / eps - 1) < 0.03
    assert abs(results["worst_case"]["accuracy"] - (distance > eps).mean()) <= near.mean()
    assert results["curve"]["median_least_l2"] == pytest.approx(eps, rel=0.05)
    points = {point["eps"]: point["accuracy"] for point in results["curve"]["points"]}
    assert points[0.0] == 1 and min(points.values()) == 0
    assert [*points.values()] == sorted(points.values(), reverse=True)


def test_no_worse_than_autoattack(project: Path, whole: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, STEPS=30, QUERIES=200, TARGETS=3)
    results = audited(NET, "--data", DATA, *QUICK, "--eps", "12/255")
    assert results["worst_case"]["autoattack"] and not results["left_out"]
    clean = store.read(Path(DATA))
    audited_set = clean[chosen_images()]
    images = classifier.to_images(audited_set.image, torch.device("cpu")).contiguous()
    labels = torch.from_numpy(audited_set.label)
    net = sparring.load(NET)
    stands = net(images).argmax(1) == labels
    for name, more in (
        ("APGD", {}),
        ("APGDT", {"n_classes": 4}),
        ("FAB", {"n_classes": 4, "multi_targeted": True}),
        ("Square", {}),
    ):
        steps = {"n_queries": 200} if name == "Square" else {"steps": 30}
        attack = getattr(torchattacks, name)(net, norm="Linf", eps=12 / 255, seed=1, **steps, **more)
        rows = stands.nonzero()[:, 0]
        stands[rows] = net(attack(images[rows], labels[rows])).argmax(1) == labels[rows]
    assert 0 < stands.float().mean() < results["clean"]["accuracy"]
    assert results["worst_case"]["accuracy"] <= float(stands.float().mean()) + 1e-6


def chosen_images() -> list[int]:
    """The rows of the 24 images that an audit of the project takes."""
    return audited_images.choose(audited_images.open_data(DATA), 10, 24, 0).tolist()


def test_what_is_written(project: Path, drawn: None, capsys: pytest.CaptureFixture[str]) -> None:
    results = audited(NET, "--data", DATA, *QUICK, "--eps", "12/255")
    assert {"clean", "worst_case", "attacks", "curve", "checks", "corruptions", "left_out", "verdict"} <= set(results)
    assert {"accuracy", "ci_low", "ci_high", "images", "norm", "eps"} <= set(results["worst_case"])
    assert "1 threads" not in results["hardware"] and results["worst_case"]["images"] == 24
    met = [row["met"] for row in results["attacks"]]
    left = [row["accuracy"] for row in results["attacks"]]
    # Each meets what those before it left, the cheapest first.
    assert met == sorted(met, reverse=True) and left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(results["worst_case"]["accuracy"])
    assert [check["check"] for check in results["checks"]][-1] == "without a bound nothing is left"
    assert results["curve"]["points"][-1]["accuracy"] == 0
    rows = results["classes"]
    assert [row["standing"] for row in rows] == sorted(row["standing"] for row in rows)
    assert sum(row["images"] for row in rows) == 24
    html, text = (Path("audit", name).read_text() for name in ("index.html", "audit.md"))
    assert not re.search(r'(src|href)="(?!data:|#)(?!https://(robustbench\.github\.io|arxiv\.org))', html)
    for name in ("fall", "radius", "classes"):
        assert Path(f"audit/figures/{name}.png").exists() and f"figures/{name}.png" in text
    assert "Never fell" in html and "The first to fall" in html
    assert not Path("audit/unfinished").exists()
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith(f"audit: robust accuracy {results['worst_case']['accuracy']:.3f}")
    )


def test_the_exit_status_tells_whether_it_is_robust_enough(project: Path) -> None:
    accuracy = audited(NET, "--data", DATA, "--images", "12", "--minutes", "0.2", "--fail-under", "0")["worst_case"]
    audited(NET, "--data", DATA, "--images", "12", "--minutes", "0.2", "--fail-under", "1", code=3)
    assert accuracy["accuracy"] < 1


class Killed(BaseException):
    pass


def test_a_run_that_was_killed_goes_on_and_ends_alike(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (NET, "--data", DATA, "--images", "16", "--minutes", "5", "--eps", "12/255", "--batch-size", "8")
    calls: list[str] = []
    fatal, attacked = [0], generation.attacked

    def counted(*arguments, **named):
        calls.append(arguments[2])
        if len(calls) == fatal[0]:
            raise Killed
        return attacked(*arguments, **named)

    monkeypatch.setattr(generation, "attacked", counted)
    whole = audited(*arguments)
    undisturbed = [*calls]
    assert len(undisturbed) > 25
    Path("audit").rename("before")
    calls.clear()
    fatal[0] = 20
    with pytest.raises(Killed):
        audited(*arguments)
    again = audited(*arguments)
    assert calls == undisturbed[:20] + undisturbed[19:]  # the batch that was killed is attacked again, and no other
    for tree in (whole, again):
        tree.pop("seconds")
        for row in tree["attacks"]:
            row.pop("seconds")
    assert again == whole


def test_what_had_no_time_is_named_and_made_up_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as slow:
        slow.setattr(plan, "measure_rates", lambda *_: plan.Rates(gradient=0.02, forward=0.01))
        short = audited(NET, "--data", DATA, "--images", "40", "--minutes", "1", "--eps", "8/255")
    assert short["left_out"] and not short["worst_case"]["autoattack"]
    assert any("This is **not AutoAttack**" in sentence for sentence in short["verdict"])
    assert Path("audit/unfinished").exists()
    longer = audited(NET, "--data", DATA, "--images", "40", "--minutes", "10", "--eps", "8/255")
    assert not longer["left_out"] and longer["worst_case"]["autoattack"]
    assert longer["worst_case"]["accuracy"] <= short["worst_case"]["accuracy"]


class Stop:
    """Ends the time of an audit when so many batches are attacked, for as long as `batches` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: float) -> None:
        self.batches, self.calls, attacked = batches, [], generation.attacked

        def counted(*arguments, **named):
            self.calls.append((arguments[2], len(arguments[5])))
            return attacked(*arguments, **named)

        monkeypatch.setattr(generation, "attacked", counted)
        monkeypatch.setattr(plan.Clock, "left", property(lambda _: 1e6 if len(self.calls) < self.batches else -1.0))


EIGHTS = (NET, "--data", DATA, "--images", "24", "--eps", "12/255", "--batch-size", "8")


def test_images_that_no_attack_met_are_told_apart_from_robust_ones(project: Path, monkeypatch, capsys) -> None:
    Stop(monkeypatch, 2)
    results = audited(*EIGHTS, "--fail-under", "1", code=3)
    (fgsm,), worst = results["attacks"], results["worst_case"]
    assert (fgsm["met"], fgsm["of"]) == (16, round(24 * results["clean"]["accuracy"]))
    assert worst["unattacked"] == fgsm["of"] - 16 and results["left_out"]["worst case: FGSM"].startswith(
        f"met 16 of {fgsm['of']} images; the others would take"
    )
    assert results["left_out"]["worst case: PGD, 20 steps"].startswith("not begun; its")
    headline, autoattack = results["verdict"][0], results["verdict"][-1]
    assert headline.startswith(f"**Robust accuracy at most {worst['accuracy']:.3f}")
    assert f"{worst['unattacked']} of the {fgsm['of']} images that are right when clean met no attack" in headline
    assert f": FGSM met 16 of {fgsm['of']} images, and the time left out PGD, 20 steps; " in autoattack
    assert results["checks"] == [] and results["masked"] is None
    out, err = capsys.readouterr()
    assert re.search(r"^FGSM: \d+ of 16 images fell; accuracy left 0\.\d{3}; \d+\.\d s$", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith(f"audit: robust accuracy at most {worst['accuracy']:.3f}")
    assert f"robust accuracy at most {worst['accuracy']:.3f} is below --fail-under 1" in err


def test_an_attack_with_time_later_meets_the_rest_alone(project: Path, monkeypatch) -> None:
    stop = Stop(monkeypatch, 2)
    monkeypatch.setattr(run, "run_parts", lambda *_: setattr(stop, "batches", 1e6))
    results = audited(*EIGHTS)
    right = round(24 * results["clean"]["accuracy"])
    fgsm = next(row for row in results["attacks"] if row["key"] == plan.SINGLE)
    assert (fgsm["met"], fgsm["of"]) == (right, right)
    assert sum(count for key, count in stop.calls if key == plan.SINGLE) == right
    assert results["worst_case"]["unattacked"] == 0 and results["verdict"][0].startswith("**Robust accuracy 0.")
    assert not [what for what in results["left_out"] if "worst case" in what]


@pytest.mark.slow
def test_more_images_go_on_from_those_before(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (NET, "--data", DATA, "--eps", "12/255", "--batch-size", "8")
    with monkeypatch.context() as slow:
        slow.setattr(plan, "FEWEST_AUDITED", 16)
        slow.setattr(plan, "measure_rates", lambda *_: plan.Rates(gradient=0.03, forward=0.03))
        first = audited(*arguments, "--images", "40", "--minutes", "1")
    assert first["worst_case"]["images"] < 40 and "images" in first["left_out"]
    calls, attacked = [], generation.attacked

    def counted(*arguments, **named):
        calls.append((arguments[2], len(arguments[5])))
        return attacked(*arguments, **named)

    monkeypatch.setattr(generation, "attacked", counted)
    more = audited(*arguments, "--images", "40", "--minutes", "10")
    assert more["worst_case"]["images"] == 40 and not more["left_out"]
    # Whole batches of the earlier run are there already; the last one of each attack was not whole.
    for name in ("pgd_ce", "pgd_margin"):
        before, met = (next(row["met"] for row in run["attacks"] if row["key"] == name) for run in (first, more))
        assert before >= 8
        assert sum(count for key, count in calls if key == name) == met - before // 8 * 8
    Path("audit").rename("both")
    calls.clear()
    again = audited(*arguments, "--images", "40", "--minutes", "10")
    assert again["worst_case"] == more["worst_case"]


def test_gradients_that_mislead_are_found(models: None) -> None:
    results = audited("python:audited_models:masked", "--data", DATA, *QUICK, "--eps", "16/255")
    assert results["masked"]
    assert any("Gradients may be masked" in sentence for sentence in results["verdict"])
    honest = audited("python:audited_models:plain", "--data", DATA, *QUICK, "--eps", "16/255")
    assert not honest["masked"]
    assert honest["worst_case"]["accuracy"] < results["worst_case"]["accuracy"]


def test_what_was_made_against_another_net_is_compared_with_the_models_own(models: None) -> None:
    arguments = ("python:audited_models:masked", "--data", DATA, *QUICK, "--eps", "16/255", "--transfer-from", NET)
    results = audited(*arguments)
    checks = {check["check"]: check for check in results["checks"]}
    transfer = checks["white box beats transfer"]
    # Its gradients lead astray, those of the same net without that do not.
    assert not transfer["passed"] and transfer["accuracy"] > transfer["against"]
    assert transfer["images"] == round(24 * results["clean"]["accuracy"])
    assert any("“white box beats transfer” failed" in sentence for sentence in results["verdict"])


def test_a_curve_that_had_no_time_to_end_is_no_sign_of_masked_gradients(project: Path, monkeypatch) -> None:
    curve_attacks, attack = plan.curve_attacks, run.Work.attack

    def late(work: run.Work, planned: plan.PlannedAttack, *rest):
        if planned.key in [step.key for step in curve_attacks("linf", 12 / 255, 16, True)[2:]]:
            work.clock.seconds = 0
        return attack(work, planned, *rest)

    monkeypatch.setattr(run.Work, "attack", late)
    results = audited(NET, "--data", DATA, *QUICK, "--eps", "12/255")
    assert results["curve"]["points"][-1]["accuracy"] > 0 and any("curve" in what for what in results["left_out"])
    assert "without a bound nothing is left" not in [check["check"] for check in results["checks"]]
    assert not results["masked"]


@pytest.mark.parametrize("name", ["stepped", "decided"])
def test_without_gradients_only_square_and_transfer_run(models: None, name: str, capsys) -> None:
    results = audited(
        f"python:audited_models:{name}", "--data", DATA, *QUICK, "--eps", "16/255", "--transfer-from", NET
    )
    assert "has no gradient; only attacks without one are run" in capsys.readouterr().err
    assert {row["key"] for row in results["attacks"]} <= {"square_short", "square", "transfer"}
    assert results["attacks"][0]["key"] == "transfer" and results["attacks"][0]["fooled"] > 0
    assert any("has no gradient" in sentence for sentence in results["verdict"])
    assert not results["worst_case"]["autoattack"]


@pytest.mark.slow
def test_the_same_model_in_other_forms_is_as_robust(models: None) -> None:
    as_file = audited(NET, "--data", DATA, *QUICK, "--eps", "12/255")
    as_code = audited("python:audited_models:plain", "--data", DATA, *QUICK, "--eps", "12/255")
    scaled = audited(
        "python:audited_models:normalised",
        *("--data", DATA, *QUICK, "--eps", "12/255"),
        *("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
    )
    for other in (as_code, scaled):
        assert other["clean"] == as_file["clean"]
        assert abs(other["worst_case"]["accuracy"] - as_file["worst_case"]["accuracy"]) <= 1 / 24 + 1e-6


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no file": (("none.safetensors", "--data", DATA), "none.safetensors is missing"),
    "pickle": (("params.yaml", "--data", DATA), "params.yaml is neither .safetensors nor .pt2"),
    "no data": ((NET, "--data", "nowhere"), "--data is nowhere; there is no"),
    "no such folder": ((NET, "--data", "gtsrb"), "--data is gtsrb; name its folder too"),
    "not on disk": ((NET, "--data", "cifar10"), "cifar10: .*data/downloads does not have it"),
    "attacked": ((NET, "--data", "data/adversarial/fgsm/test.parquet"), "holds attacked images"),
    "no norm": ((NET, "--data", DATA, "--norm", "l1"), "--norm is l1; use linf or l2"),
    "no number": ((NET, "--data", DATA, "--eps", "much"), "--eps is much; write a number"),
    "levels": ((NET, "--data", DATA, "--eps", "8"), "--eps is 8; .*use 8/255"),
    "fraction": ((NET, "--data", DATA, "--eps", "0.033"), "--eps is 0.033; .*use 8/255"),
    "minutes": ((NET, "--data", DATA, "--minutes", "0"), "audit: minutes is 0.0; it should be greater than 0"),
    "images": ((NET, "--data", DATA, "--images", "0"), "audit: images is 0; it should be greater than or equal to 1"),
    "side": ((NET, "--data", DATA, "--image-size", "7"), "audit: image_size is 7; it should be greater than or"),
    "share": ((NET, "--data", DATA, "--fail-under", "nan"), "audit: fail_under is NaN; it is a share, so 0 to 1"),
    "batch": ((NET, "--data", DATA, "--batch-size", "some"), "--batch-size is some; use auto"),
    "size": ((NET, "--data", DATA, "--image-size", "32"), "is for images of 16 pixels"),
    "three": (
        ("three.safetensors", "--network", "{name: resnet, blocks: [1, 1, 1, 1], width: 4}", "--data", DATA),
        "tells 3 classes apart; the images in --data have 10; use images of the classes that it learnt",
    ),
    "nan": (("python:audited_models:nan", "--data", DATA), "gives NaN for an image"),
    "noisy": (("python:audited_models:noisy", "--data", DATA), "other logits when it is asked again"),
    "seven": (("python:audited_models:seven", "--data", DATA), "tells 7 classes apart, .* has 10"),
    "guessing": (("python:audited_models:constant", "--data", DATA), "no more than guessing does"),
    "normalised": (
        ("python:audited_models:normalised", "--data", DATA),
        "normalised as for ImageNet; add --mean 0.485",
    ),
    "no module": (("python:audited_models:number", "--data", DATA), "gives a int; it should give a torch.nn.Module"),
    "raises": (("python:audited_models:broken", "--data", DATA), r"failed \(RuntimeError: no weights here\)"),
    "no such": (("python:audited_models:absent", "--data", DATA), "failed .AttributeError"),
    "no colon": (("python:audited_models", "--data", DATA), "is not python:MODULE:FUNCTION"),
    "one option": ((NET, "--data", DATA, "--mean", "0.5"), "--mean is given without --std"),
    "decided": (
        (NET, "--data", DATA, "--transfer-from", "python:audited_models:decided"),
        "has no gradient, so nothing",
    ),
    "a file": ((NET, "--data", DATA, "--out", "params.yaml"), "--out is params.yaml, a file; name a folder"),
    "other": ((NET, "--data", DATA, "--transfer-from", "none.pt2"), "none.pt2 is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(models: None, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, says = BAD[name]
    if name == "three":
        net = networks.create(Network(name="resnet", blocks=[1, 1, 1, 1], width=4), 3, 16)
        save_file(net.state_dict(), "three.safetensors")
    before = Path("params.yaml").read_text()
    with pytest.raises(SystemExit) as stop:
        command_line.main(["audit", *arguments])
    assert stop.value.code == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and re.search(says, error[0]), error
    assert not Path("audit").exists() and Path("params.yaml").read_text() == before


def test_labels_beyond_the_models_classes(models: None, digits: store.Images) -> None:
    wrong = store.Images(digits.index, digits.label + 1, digits.image)
    write_store(Path("wrong.parquet"), wrong, [str(number) for number in range(10)])
    with pytest.raises(InputError, match="has the label 10; the model tells 10 classes apart, so labels are 0 to 9"):
        audit_images("wrong.parquet")


def test_a_class_without_images_is_told(models: None, digits: store.Images, capsys) -> None:
    write_store(Path("nine.parquet"), digits[digits.label != 3], [str(number) for number in range(10)])
    audit_images("nine.parquet")
    assert "warning: nine.parquet has no images of the class 3, of which" in capsys.readouterr().err


def audit_images(path: str) -> None:
    audited_images.choose(audited_images.open_data(path), 10, 50, 0)


def test_json_is_json(project: Path) -> None:
    audited(NET, "--data", DATA, "--images", "12", "--minutes", "0.1")
    text = Path("audit/audit.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))

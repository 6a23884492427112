"""Every class of torchattacks is refused when parameters are read, or runs. Tests too what each needs of the data."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks

from sparring import store
from sparring.attacks import engine, generation
from sparring.defences.train import train
from sparring.evaluation import whitebox
from sparring.layout import HERE
from sparring.models import classifier
from sparring.models.resnet import ResNet
from sparring.params import Params, check_classes, demands
from sparring.params.attacks import TORCHATTACKS
from sparring.params.errors import InputError
from sparring.params.names import BASELINE
from sparring.store import Images
from sparring.training.pretrain import pretrain

CPU = torch.device("cpu")
CLASSES = sorted(
    name
    for name, member in vars(torchattacks).items()
    if inspect.isclass(member) and issubclass(member, torchattacks.attack.Attack)
)
# Settings with which an attack on a few tiny images is quick.
QUICK: dict[str, Any] = {
    **{"steps": 2, "restarts": 2, "n_queries": 5, "nb_sample": 4, "num_iter_set": 2, "popsize": 2, "m": 2, "N": 2},
    **{"noise_batch_size": 2, "max_iterations": 10, "binary_search_steps": 2, "gamma": 0.03},
}
SLOW = {"SparseFool"}
SIZE = 8

Opponent = Callable[..., Params]


@pytest.fixture
def opponent(tiny: Callable[..., Params]) -> Opponent:
    """Return a function of parameters whose one attack is `it`, a class of torchattacks with quick settings."""

    def make(name: str, size: int = SIZE, **arguments: Any) -> Params:
        quick = {
            key: value for key, value in QUICK.items() if key in inspect.signature(vars(torchattacks)[name]).parameters
        }
        # AutoAttack is as quick as the first of its attacks that fools an image.
        radius = {"eps": 0.9} if name == "AutoAttack" else {}
        entry = {"method": TORCHATTACKS + name, **quick, **radius, **arguments}
        return tiny(attacks={"it": entry}, unseen_attacks={}, data={"image_size": size})

    return make


def net_and_images(classes: int, size: int = SIZE, count: int = 3) -> tuple[ResNet, Images]:
    """Create a net, and images of which it classifies all but every third as labelled, the highest class among them."""
    torch.manual_seed(0)
    net = ResNet((1, 1, 1, 1), 4, classes).eval()
    image = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    label = classifier.predict(net, image, count, CPU).argmax(1)
    label[2::3] = (label[2::3] + 1) % classes
    with torch.no_grad():  # by other names, so that the highest class is one that the net is right about
        swap = torch.arange(classes)
        swap[[int(label[0]), classes - 1]] = swap[[classes - 1, int(label[0])]]
        net.fc.weight.copy_(net.fc.weight[swap])
        net.fc.bias.copy_(net.fc.bias[swap])
    return net, Images(np.arange(count), swap.numpy()[label], image)


def attacked(params: Params, net: ResNet, images: Images) -> Images:
    model = engine.Fast(net, CPU, torch.float32)
    return generation.attacked(params, params.attacks["it"], "it", net, model, images, images, CPU)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_read_or_refused_in_one_line(name: str, opponent: Opponent) -> None:
    if name not in demands.REFUSED:
        assert opponent(name).attacks["it"].library_class == name
        return
    with pytest.raises(InputError) as caught:
        opponent(name)
    assert str(caught.value) == f"params.yaml: attacks.it.method is torchattacks.{name}; {demands.REFUSED[name]}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in CLASSES
        if name not in demands.REFUSED
    ],
)
def test_every_class_runs_and_its_images_are_a_function_of_the_seed(name: str, opponent: Opponent) -> None:
    params = opponent(name)
    attack = params.attacks["it"]
    net, images = net_and_images(10)
    check_classes(params, 10)
    stored = attacked(params, net, images)
    assert stored.image.shape == images.image.shape and stored.image.dtype == np.uint8
    change = np.abs(stored.image.astype(int) - images.image)
    assert attack.linf is None or change.max() <= round(255 * attack.linf)
    if name in ("FGSM", "PGD", "GN", "PGDL2", "DeepFool", "Pixle", "PIFGSM"):
        assert change.max() > 0
    np.random.seed(1)
    torch.manual_seed(1)
    assert np.array_equal(attacked(params, net, images).image, stored.image)
    # An image alone, as the last one of a file may be, and only images that are right or wrong.
    if name not in SLOW:
        for row in (0, 2):
            assert len(attacked(params, net, images[[row]])) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "least"),
    [
        ("APGD", {"loss": "dlr"}, 3),
        ("UPGD", {"loss": "dlr"}, 3),
        ("APGDT", {}, 4),
        ("JSMA", {}, 10),
        pytest.param("AutoAttack", {"version": "rand", "eps": 0.01}, 3, marks=pytest.mark.slow),
        pytest.param("AutoAttack", {"eps": 0.01}, 4, marks=pytest.mark.slow),
    ],
)
def test_a_class_runs_with_as_many_classes_as_it_needs_and_fails_with_fewer(
    name: str, arguments: dict[str, Any], least: int, opponent: Opponent
) -> None:
    params = opponent(name, **arguments)
    check_classes(params, least)
    net, images = net_and_images(least, count=1)
    assert len(attacked(params, net, images)) == 1
    with pytest.raises(InputError) as caught:
        check_classes(params, least - 1)
    assert str(caught.value) == (
        f"params.yaml: attacks.it is torchattacks.{name}; it needs {least} classes or more, but the data has "
        f"{least - 1}; use another attack"
    )
    # The library's own failure, were it let through: one line with the attack's name.
    net, images = net_and_images(least - 1, count=1)
    with pytest.raises(InputError, match=rf"^params\.yaml: attacks\.it: torchattacks\.{name} failed: IndexError index"):
        attacked(params, net, images)


@pytest.mark.parametrize(
    "name", [name for name in CLASSES if name not in {*demands.REFUSED, *SLOW, "APGDT", "AutoAttack", "JSMA"}]
)
def test_other_classes_run_with_two_and_three_classes_and_on_larger_images(name: str, opponent: Opponent) -> None:
    for classes, size in ((2, 8), (3, 16)):
        params = opponent(name, size)
        check_classes(params, classes)
        assert len(attacked(params, *net_and_images(classes, size, count=2))) == 2


def test_n_classes_is_not_above_the_datas(opponent: Opponent) -> None:
    check_classes(opponent("FAB", n_classes=3), 3)
    with pytest.raises(
        InputError, match=r"attacks\.it is torchattacks\.FAB; n_classes is 12, but the data has 10 classes"
    ):
        check_classes(opponent("FAB", n_classes=12), 10)


def test_demands_of_autoattack_count_where_it_is_run(tiny: Callable[..., Params]) -> None:
    check_classes(tiny(), 2)
    with pytest.raises(InputError) as caught:
        check_classes(tiny(whitebox={"autoattack": {"images": 6, "eps": 0.1}}), 2)
    assert str(caught.value) == (
        "params.yaml: whitebox.autoattack is autoattack; it needs 4 classes or more, but the data has 2; "
        "set its images to 0"
    )


@pytest.mark.parametrize(
    ("name", "arguments", "size", "expected"),
    [
        (
            "JSMA",
            {},
            72,
            "it needs images of 64 pixels at most, as it compares all pairs of values; data.image_size is",
        ),
        ("DIFGSM", {"resize_rate": 1.1}, 8, "resize_rate 1.1 brings 8 pixels to 8; use a share such as 0.9"),
        ("TIFGSM", {"resize_rate": 0.1}, 8, "resize_rate 0.1 brings 8 pixels to 0; use a share such as 0.9"),
    ],
)
def test_demands_on_the_size_of_images_are_read(
    name: str, arguments: dict[str, Any], size: int, expected: str, opponent: Opponent
) -> None:
    with pytest.raises(InputError) as caught:
        opponent(name, size, **arguments)
    assert str(caught.value).startswith(f"params.yaml: attacks.it is torchattacks.{name}; {expected}")
    opponent(name, 16, **({"resize_rate": 1.1} if "resize_rate" in arguments else {}))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("FAB", {"norm": "L1"}, "norm is L1; use Linf or L2"),
        ("APGD", {"norm": "linf"}, "norm is linf; use Linf or L2"),
        ("AutoAttack", {"version": "fast"}, "version is fast; use standard, plus or rand"),
        ("UPGD", {"loss": "mse"}, "loss is mse; use ce, dlr or margin"),
        ("PGDRS", {"noise_type": "gaussian"}, "noise_type is gaussian; use guassian or uniform"),
        ("TIFGSM", {"kernel_name": "box"}, "kernel_name is box; use gaussian, linear or uniform"),
        ("EADL1", {"max_iterations": 9}, "max_iterations is 9; it is a whole number, 10 or more"),
        ("PGD", {"steps": 2.5}, "steps is 2.5; it is a whole number, 1 or more"),
        ("PGD", {"random_start": 1}, "random_start is 1; it is true or false"),
        ("APGD", {"seed": -1}, "seed is -1; it is a whole number, 0 or more"),
        ("APGDT", {"n_classes": 1}, "n_classes is 1; it is a whole number, 2 or more"),
        (
            "Pixle",
            {"update_each_iteration": True},
            "update_each_iteration is true; torchattacks can then take one image",
        ),
    ],
)
def test_arguments_that_the_library_would_fail_on(
    name: str, arguments: dict[str, Any], expected: str, opponent: Opponent
) -> None:
    with pytest.raises(InputError) as caught:
        opponent(name, **arguments)
    assert str(caught.value).startswith(f"params.yaml: attacks.it.{expected}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "name"),
    [("attacks", "it"), ("unseen_attacks", "it"), ("whitebox.attacks", "it"), ("whitebox.checks", "square")],
)
def test_a_failure_of_the_library_names_the_attack(
    section: str, name: str, tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("not\nthis time")

    fgsm, good = {"method": "torchattacks.FGSM", "eps": 0.1}, {"fgsm": {"eps": 0.1}}
    changes: dict[str, Any] = {"attacks": good, "unseen_attacks": {}}
    if section in changes:
        changes[section] = {"it": fgsm}
    elif section == "whitebox.attacks":
        changes["whitebox"] = {"attacks": {"pgd": tiny().whitebox.attacks["pgd"].arguments, "it": fgsm}}
    params = tiny(**changes)
    sections = {"attacks": params.attacks, "unseen_attacks": params.unseen_attacks}
    attack = sections[section][name] if section in sections else params.whitebox.runs[name][0]
    for attack_class in (torchattacks.FGSM, torchattacks.Square):
        monkeypatch.setattr(attack_class, "forward", fails)
    net, images = net_and_images(3)
    with pytest.raises(InputError) as caught:
        generation.attacked(params, attack, name, net, engine.Fast(net, CPU, torch.float32), images, images, CPU)
    key = section if section == "whitebox.checks" else f"{section}.{name}"
    assert str(caught.value) == f"params.yaml: {key}: {attack.method} failed: RuntimeError not this time"


def test_a_failure_of_ours_stays_what_it_is(tiny: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, eps: float) -> None:
        raise RuntimeError("ours")

    monkeypatch.setitem(generation.attacks.METHODS, "fgsm", fails)
    with pytest.raises(RuntimeError, match="ours"):
        attacked(tiny(attacks={"it": {"method": "fgsm", "eps": 0.1}}), *net_and_images(3))


def test_stages_check_the_data_before_they_work(project: Path, tiny: Callable[..., Params]) -> None:
    params = tiny(unseen_attacks={"aimed": {"method": "torchattacks.APGDT", "eps": 0.1}})
    for split in ("train", "test"):
        images = store.read(HERE.clean / f"{split}.parquet")
        metadata = images.metadata | {"classes": ["0", "1", "2"]}
        store.write(HERE.clean / f"{split}.parquet", [images], metadata)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    for stage in (
        lambda: pretrain(params),
        lambda: generation.attack_splits(params, "fgsm"),
        lambda: train(params, "adv"),
        lambda: whitebox.attack_structure(params, BASELINE),
    ):
        with pytest.raises(
            InputError, match=r"unseen_attacks\.aimed is torchattacks\.APGDT; it needs 4 classes or more"
        ):
            stage()
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before

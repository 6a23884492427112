"""Every kind of wrong params.yaml ends in one line that names the key, the value and what would be right."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils import hydra
from ruamel.yaml import YAML
from structures import words

from sparring import params
from sparring.layout import main_repository
from sparring.params.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = YAML(typ="safe").load(ROOT / "profiles" / "digits.yaml")
PGD = "torchattacks.PGD"


def changed(**changes: Any) -> dict[str, Any]:
    """Return the good parameters with some values replaced; `__` separates the parts of a key."""
    values = copy.deepcopy(GOOD)
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    return values


def without(section: str, key: str) -> dict[str, Any]:
    values = copy.deepcopy(GOOD)
    del values[section][key]
    return values


def message(values: Any) -> str:
    with pytest.raises(InputError) as error:
        params.validate(values)
    return str(error.value)


def test_params_here_are_valid() -> None:
    assert params.load(ROOT / "params.yaml").seed >= 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (changed(sampler__adv_ratio=1.4), "sampler.adv_ratio is 1.4; it is a share, so 0 to 1"),
        (changed(sampler__adv_ratio=float("nan")), "sampler.adv_ratio is NaN; it is a share, so 0 to 1"),
        (changed(sampler__adv_ratio="0.5"), 'sampler.adv_ratio is "0.5"; it should be a valid number'),
        (changed(sampler__adv_ratio=True), "sampler.adv_ratio is true; it should be a valid number"),
        (
            changed(sampler__adv_ratio=0.05),
            "sampler.range is 0.1; adv_ratio 0.05 ± range must stay within 0 to 1, so at most 0.05",
        ),
        (changed(sampler__redraw="sample"), "sampler.redraw is \"sample\"; it should be 'epoch' or 'batch'"),
        (
            changed(training__schedule="constnt"),
            "training.schedule is \"constnt\"; it should be 'constant', 'step', 'cosine' or 'one_cycle'; "
            "did you mean constant?",
        ),
        (changed(training__epochs=0), "training.epochs is 0; it should be greater than or equal to 1"),
        (changed(training__epochs=2.5), "training.epochs is 2.5; it should be a valid integer"),
        (changed(training__epochs=None), "training.epochs is null; it should be a valid integer"),
        (changed(training__learning_rate="fast"), 'training.learning_rate is "fast"; it should be a valid number'),
        (changed(training__horizontal_flip="yes"), 'training.horizontal_flip is "yes"; it should be a valid boolean'),
        (changed(training__crop_area=[0.5]), "training.crop_area is [0.5]; it needs 2 entries"),
        (
            changed(training__crop_area=[0.9, 0.5]),
            "training.crop_area is [0.9, 0.5]; it is [smallest, largest] share of the image, both above 0",
        ),
        (changed(network__blocks=[1] * 5), "network.blocks is [1, 1, 1, 1, 1]; it needs 4 entries"),
        (changed(network__blocks=[1, 1, 1, 0]), "network.blocks.3 is 0; it should be greater than or equal to 1"),
        (
            changed(network={"name": "resnet", "blocks": [1, 1, 1, 1]}),
            "network.width is missing; add it (profiles/digits.yaml has every key, with its meaning)",
        ),
        (
            changed(network={"name": "vgg11bn"}),
            'network.name is "vgg11bn"; use resnet, facenet, dnn1, dnn2, dnn3, dnn4, mtcnn or a classifier '
            "of torchvision; did you mean vgg11_bn or vgg11?",
        ),
        (  # a detector of objects, known to torchvision, but no classifier
            changed(network={"name": "ssd300_vgg16"}),
            'network.name is "ssd300_vgg16"; use resnet, facenet, dnn1, dnn2, dnn3, dnn4, mtcnn or a classifier of '
            "torchvision, such as alexnet, convnext_base, convnext_large",
        ),
        (
            changed(network__name="vgg11_bn"),
            "network.blocks is [1, 1, 1, 1]; only resnet has it: network is {name: vgg11_bn}",
        ),
        (
            changed(data__source="cifar"),
            "data.source is \"cifar\"; it should be 'digits', 'cifar10', 'parquet', 'folder', "
            "'gtsrb', 'belgium', 'orl', 'yale', 'cifar100', 'mnist' or 'fashion_mnist'; did you mean cifar10?",
        ),
        (
            changed(data__source="folder"),
            "data.path is missing; data.source folder reads the files that data.path names",
        ),
        (
            changed(data__source="gtsrb"),
            "data.path is missing; data.source gtsrb reads the files that data.path names",
        ),
        (
            changed(data__group_pattern="abc"),
            'data.group_pattern is "abc"; it needs exactly one (…) that captures the name of the group',
        ),
        (changed(data=3), "data is 3; it should be a section: keys with values"),
        (changed(attacks=None), "attacks is null; it should be a section: keys with values"),
        (changed(device="gpu"), 'device is "gpu"; use auto, cpu, cuda or cuda:<number>'),
        (
            changed(structures__x=words("none", detector="detector")),
            "structures.x.detector needs adversarial images to learn from; name its opponents: sampler or fixed",
        ),
        (changed(seeds=[]), "seeds is []; it needs 1 entries"),
        (changed(whitebox__images=-1), "whitebox.images is -1; it should be greater than or equal to 0"),
        (
            changed(whitebox__attacks__fgsm={"eps": 0.001}),
            "whitebox.attacks.fgsm.eps is 0.001; below 1/255 nothing of it survives storage in 8 bits",
        ),
        (
            changed(whitebox__attacks__square={"eps": 0.1}),
            "whitebox.attacks.square cannot be a name here; use letters, digits, - and _, not clean, autoattack, "
            "more_steps, square, single_draw",
        ),
        (
            changed(whitebox__attacks={"fgsm": {"eps": 0.1}}),
            "whitebox.attacks has no pgd with norm linf, from which the checks and the curve are made; add one",
        ),
        (
            changed(whitebox__checks__steps=20),
            "whitebox.checks.steps is 20; it must be more than attacks.pgd has, which is 20",
        ),
        (
            changed(whitebox__autoattack__eps=0.001),
            "whitebox.autoattack.eps is 0.001; below 1/255 nothing of it survives storage in 8 bits",
        ),
        (
            changed(whitebox__curve__eps=[64, 2, 255]),
            "whitebox.curve.eps is [64, 2, 255]; it is radii in 1/255 that rise to 128 at least, at which any image "
            "can be made grey",
        ),
        (changed(whitebox__curve__eps=[256]), "whitebox.curve.eps.0 is 256; it should be less than or equal to 255"),
        (changed(seeds=[0, 1, 0]), "seeds is [0, 1, 0]; name each seed once"),
        (changed(training__ema=1.0), "training.ema is 1.0; it should be less than 1"),
        (changed(training__devices=0), "training.devices is 0; use auto or a number of devices, 1 or more"),
        (changed(training__devices="all"), 'training.devices is "all"; use auto or a number of devices, 1 or more'),
        (
            changed(training__keep="best", data__validation=0),
            "training.keep is best, but data.validation is 0; give it images to choose by, or use last",
        ),
        (
            changed(structures__x=words("online_pgd", detector="detector")),
            "structures.x.detector has no clean images to learn from, as online_pgd attacks every image; use none, or "
            "sampler or fixed as opponents",
        ),
        (changed(online_fgsm__eps=0.0), "online_fgsm.eps is 0.0; it should be greater than 0"),
        (changed(seed=-1, device="gpu"), "seed is -1; it should be greater than or equal to 0 (1 more after this)"),
    ],
)
def test_wrong_value(values: Any, expected: str) -> None:
    assert message(values) == f"params.yaml: {expected}"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (changed(network={"blocks": [1, 1, 1, 1], "width": 8}), "network.name is missing; add it"),
        (changed(trainig={}), "trainig is not a key; did you mean training?"),
        (changed(sampler__rnage=0.1), "sampler.rnage is not a key; did you mean range?"),
        (changed(structures__ours__mask=1), "structures.ours.mask is not a key; profiles/digits.yaml lists"),
        (changed(attacks__fgsm__epz=0.1), "attacks.fgsm.epz is not a key; did you mean eps?"),
        (without("training", "epochs"), "training.epochs is missing; add it"),
        (without("training", "epochs") | {"trainig": {}}, "trainig is not a key; did you mean training?"),
        (changed(attacks__fgsm={}), "attacks.fgsm.eps is missing; add it"),
        (changed(structures__x={"opponents": "none"}), "structures.x.evolving is missing; add it"),
    ],
)
def test_wrong_key(values: Any, expected: str) -> None:
    problem = message(values)
    assert problem.startswith(f"params.yaml: {expected}")
    assert "\n" not in problem


def test_misspelt_key_is_named_before_the_key_that_it_leaves_missing() -> None:
    values = without("training", "epochs")
    values["training"]["epoch"] = 3
    assert message(values) == "params.yaml: training.epoch is not a key; did you mean epochs? (1 more after this)"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (changed(attacks__pgm={"eps": 0.1}), 'attacks.pgm.method is "pgm"; there is no such attack; did you mean pgd?'),
        (changed(attacks__pgd={"method": ["x"]}), 'attacks.pgd.method is ["x"]; there is no such attack; use '),
        (changed(attacks__fgsm=None), "attacks.fgsm is null; it needs the attack's arguments, as in {eps: 0.03}"),
        (changed(attacks__fgsm__eps="big"), 'attacks.fgsm.eps is "big"; it should be a valid number'),
        (changed(attacks__fgsm__eps=0.003), "attacks.fgsm.eps is 0.003; below 1/255"),
        (changed(attacks__bim__steps=0), "attacks.bim.steps is 0; it should be greater than or equal to 1"),
        (changed(attacks__nst__style="x"), "attacks.nst.style is \"x\"; it should be 'maps' or 'gram'"),
        (changed(attacks__clean={"method": "fgsm", "eps": 0.1}), "attacks.clean cannot be a name here; use letters"),
        (
            changed(attacks__mixture={"method": "fgsm", "eps": 0.1}),
            "attacks.mixture cannot be a name here; use letters",
        ),
        (
            changed(structures__images=words("sampler")),
            "structures.images cannot be a name here; use letters",
        ),
        (
            changed(structures={"low-0.5": words("none")}),
            "structures.low-0.5 cannot be",
        ),
        (
            changed(structures__baseline=words("none")),
            "structures.baseline.opponents is none; it is the pretrained net, so use pretrained",
        ),
        (
            changed(structures__x=words("pretrained")),
            "structures.x.opponents is pretrained; that net is baseline; name the opponents to train against",
        ),
        (
            changed(structures__baseline=words("pretrained", detector="detector")),
            "structures.baseline.detector needs adversarial images to learn from",
        ),
        (
            changed(structures={"adv": words("sampler")}),
            "structures.baseline is missing; add baseline: {opponents: pretrained, evolving: none, detector: none, "
            "transform: none}",
        ),
        (
            changed(training__shift=4),
            "training.shift is 4, and crop_area [0.45, 1.0]; images are cropped or shifted, so use crop_area:",
        ),
        (
            changed(training__keep="best_robust"),
            "training.keep is best_robust, but monitor.every is 0; set it to 1, so that there is an accuracy to choose",
        ),
        (
            changed(training__keep="best_robust", monitor__every=1, data__validation=0),
            "training.keep is best_robust, but data.validation is 0; give it images to choose by, or use last",
        ),
        (
            changed(online_pgd__noise=2),
            "online_pgd.noise is 2 and steps 7; another start than within eps is for a single step, so use noise: 1",
        ),
        (
            changed(online_pgd__noise=0),
            "online_pgd.noise is 0 and steps 7; another start than within eps is",
        ),
        (changed(evolving__eps="128/255"), "evolving.eps is 128/255; it is kept as int8, so use 127/255 at most"),
        (changed(evolving__eps=0.03), "evolving.eps is 0.03; it is a whole number of levels of 255; use 8/255"),
        (changed(evolving__step=0.001), "evolving.step is 0.001; it is a whole number of levels of 255; use 1/255"),
        (
            changed(evolving__eps=8),
            "evolving.eps is 8; an L∞ radius is a share of the pixel range, so 0 to 1; 8/255 is",
        ),
        (
            changed(evolving__start="fgsm"),
            "evolving.start is fgsm, and frame fixed; stored changes belong to the image's pixels, so use frame",
        ),
        (
            changed(evolving__start="mine", evolving__frame="moving"),
            "evolving.start is mine, which is not in attacks; use random, gaussian, fgsm, bim, deepfool, cw, nst",
        ),
        (
            changed(evolving__frame="moving", structures__x=words("evolving")),
            "evolving.frame is moving, and training.crop_area [0.45, 1.0]; only shifts and flips move pixels whole",
        ),
        (
            changed(structures__x=words("evolving", detector="detector")),
            "structures.x.detector has no clean images to learn from, as evolving.adv_ratio is 1; lower it, or use",
        ),
        (
            changed(structures__x=words("evolving", evolving="evolving")),
            "structures.x.evolving is for who stands among stored opponents, sampler or fixed; opponents is evolving, "
            "so use none",
        ),
        (
            changed(structures__x=words("none", evolving="evolving")),
            "structures.x.evolving is for who stands among stored opponents, sampler or fixed; opponents is none, "
            "so use none, or evolving as opponents",
        ),
        (changed(attacks__random={"method": "fgsm", "eps": 0.1}), "attacks.random cannot be a name here"),
        (changed(attacks={}, sampler__weights={}, fixed__weights={}), "attacks is empty; name at least one"),
        (changed(unseen_attacks={"fgsm": {"eps": 0.1}}), "unseen_attacks.fgsm is also in attacks; "),
        (changed(sampler__weights__pgd=1), "sampler.weights.pgd is not in attacks; remove it from "),
        (changed(fixed__weights=dict.fromkeys(GOOD["attacks"], 0)), "fixed.weights are all 0; give at least one"),
    ],
)
def test_wrong_attack_or_name(values: Any, expected: str) -> None:
    problem = message(values)
    assert problem.startswith(f"params.yaml: {expected}")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"method": "torchattacks.PDG"},
            ".method is torchattacks.PDG; torchattacks has no attack of that name; did you",
        ),
        ({"method": PGD, "epz": 0.1}, ".epz is not an argument of torchattacks.PGD; it takes eps, alpha, steps, "),
        ({"method": PGD, "model": 1}, ".model is not an argument of torchattacks.PGD; it takes eps, "),
        ({"method": PGD, "eps": "big"}, '.eps is "big"; it is a number, as in 0.0313725'),
        ({"method": PGD, "steps": None}, ".steps is null; it is a number, as in 10"),
    ],
)
def test_wrong_torchattacks_argument(entry: dict[str, Any], expected: str) -> None:
    assert message(changed(unseen_attacks={"pgd": entry})).startswith(f"params.yaml: unseen_attacks.pgd{expected}")


FRACTION = "8/255"


@pytest.mark.parametrize(
    ("changes", "get"),
    [
        ({"attacks__fgsm__eps": FRACTION}, lambda read: read.attacks["fgsm"].arguments["eps"]),
        ({"attacks__bim__step": FRACTION}, lambda read: read.attacks["bim"].arguments["step"]),
        ({"attacks__gaussian__std": FRACTION}, lambda read: read.attacks["gaussian"].arguments["std"]),
        (
            {"unseen_attacks": {"x": {"method": PGD, "eps": FRACTION}}},
            lambda read: read.unseen_attacks["x"].arguments["eps"],
        ),
        (
            {"unseen_attacks": {"x": {"method": PGD, "alpha": " 8 / 255.0 "}}},
            lambda read: read.unseen_attacks["x"].arguments["alpha"],
        ),
        (
            {"unseen_attacks": {"x": {"method": "torchattacks.PIFGSM", "max_epsilon": FRACTION}}},
            lambda read: read.unseen_attacks["x"].linf,
        ),
        ({"whitebox__attacks__pgd_8__eps": FRACTION}, lambda read: read.whitebox.attacks["pgd_8"].arguments["eps"]),
        ({"whitebox__attacks__pgd_l2__step": FRACTION}, lambda read: read.whitebox.attacks["pgd_l2"].arguments["step"]),
        ({"whitebox__attacks__ddn__gamma": FRACTION}, lambda read: read.whitebox.attacks["ddn"].arguments["gamma"]),
        ({"whitebox__autoattack__eps": FRACTION}, lambda read: read.whitebox.autoattack.eps),
        ({"online_fgsm__eps": FRACTION}, lambda read: read.online_fgsm.eps),
        ({"online_pgd__step": FRACTION}, lambda read: read.online_pgd.step),
        ({"detection__eps": FRACTION}, lambda read: read.detection.eps),
        ({"mixture__adv_ratio": FRACTION}, lambda read: read.mixture.adv_ratio),
        ({"training__label_smoothing": FRACTION}, lambda read: read.training.label_smoothing),
    ],
    ids=lambda get: None if callable(get) else next(iter(get)),
)
def test_a_fraction_is_the_number_that_it_makes(changes: dict[str, Any], get: Callable[[params.Params], Any]) -> None:
    number = get(params.validate(changed(**changes)))
    assert type(number) is float and number == 8 / 255


SHARE_OF_RANGE = "an L∞ radius is a share of the pixel range, so 0 to 1"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attacks__pgd": {"method": PGD, "eps": 8}}, f"attacks.pgd.eps is 8; {SHARE_OF_RANGE}; 8/255 is 0.0314"),
        ({"attacks__fgsm__eps": 8}, f"attacks.fgsm.eps is 8; {SHARE_OF_RANGE}; 8/255 is 0.0314"),
        ({"attacks__bim__eps": 1.5}, f"attacks.bim.eps is 1.5; {SHARE_OF_RANGE}; 1.5/255 is 0.00588"),
        ({"attacks__fgsm__eps": 300}, f"attacks.fgsm.eps is 300; {SHARE_OF_RANGE}"),
        ({"attacks__fgsm__eps": "510/255"}, f"attacks.fgsm.eps is 2.0; {SHARE_OF_RANGE}; 2/255 is 0.00784"),
        ({"attacks__x": {"method": "torchattacks.PIFGSM", "max_epsilon": 16}}, "attacks.x.max_epsilon is 16; an L∞"),
        ({"whitebox__attacks__pgd__eps": 6}, f"whitebox.attacks.pgd.eps is 6; {SHARE_OF_RANGE}; 6/255 is 0.0235"),
        ({"whitebox__autoattack__eps": 8}, f"whitebox.autoattack.eps is 8; {SHARE_OF_RANGE}; 8/255 is 0.0314"),
        ({"online_pgd__eps": 8}, f"online_pgd.eps is 8; {SHARE_OF_RANGE}; 8/255 is 0.0314"),
        ({"detection__eps": 8}, f"detection.eps is 8; {SHARE_OF_RANGE}; 8/255 is 0.0314"),
        ({"attacks__fgsm__eps": float("nan")}, "attacks.fgsm.eps is NaN; it should be greater than 0"),
        ({"attacks__fgsm__eps": "8/0"}, 'attacks.fgsm.eps is "8/0"; it divides by 0; write a fraction such as 8/255'),
        ({"detection__eps": "8/x"}, 'detection.eps is "8/x"; it is neither a number nor a fraction such as 8/255'),
        ({"sampler__range": "1/0.0"}, 'sampler.range is "1/0.0"; it divides by 0; write a fraction such as 8/255'),
        ({"attacks__pgd": {"method": PGD, "alpha": "2/"}}, 'attacks.pgd.alpha is "2/"; it is neither a number nor a'),
        ({"attacks__pgd": {"method": PGD, "eps": "1/0"}}, 'attacks.pgd.eps is "1/0"; it divides by 0; write a'),
        ({"attacks__pgd": {"method": PGD, "steps": "20/2"}}, "attacks.pgd.steps is 10.0; it is a whole number, 1 or"),
        ({"training__epochs": "8/4"}, 'training.epochs is "8/4"; it should be a valid integer'),
        ({"attacks__fgsm__eps": "-8/255"}, "attacks.fgsm.eps is -0.03137254901960784; it should be greater than 0"),
    ],
)
def test_wrong_radius_or_fraction(changes: dict[str, Any], expected: str) -> None:
    problem = message(changed(**changes))
    assert problem.startswith(f"params.yaml: {expected}") and "\n" not in problem
    if "share" in expected:
        assert problem == f"params.yaml: {expected}" or "max_epsilon" in expected


def test_an_l2_radius_may_be_above_1() -> None:
    ball = {"method": "torchattacks.PGDL2", "eps": 2}
    assert params.validate(changed(unseen_attacks={"x": ball})).unseen_attacks["x"].l2 == 2
    assert params.validate(changed(whitebox__attacks__pgd_l2__eps="5/2")).whitebox.attacks["pgd_l2"].l2 == 2.5


def test_fractions_by_dvcs_own_settings(tmp_path: Path) -> None:
    """`dvc exp run -S attacks.fgsm.eps=8/255` changes the file so."""
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "profiles" / "digits.yaml").read_bytes())
    hydra.apply_overrides(path, ["attacks.fgsm.eps=8/255", "detection.eps=4/255"])
    values = params.load(path)
    assert (values.attacks["fgsm"].arguments["eps"], values.detection.eps) == (8 / 255, 4 / 255)


def test_torchattacks_arguments_are_recorded_with_the_defaults() -> None:
    values = params.validate(changed(unseen_attacks={"pgd": {"method": PGD, "eps": 0.03, "random_start": False}}))
    arguments = values.unseen_attacks["pgd"].arguments
    assert arguments == {"eps": 0.03, "alpha": pytest.approx(2 / 255), "steps": 10, "random_start": False}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", " is empty; it needs the sections of profiles/digits.yaml"),
        (b"- 1", " holds a list; it needs the sections of profiles/digits.yaml"),
        (b"data: [1", " is not YAML: while parsing a flow sequence"),
        (b"seed: 1\nseed: 2\n", ' is not YAML: while constructing a mapping in "'),
        (b"\xff\xfe\xfa", " is not YAML: "),
    ],
)
def test_unreadable_file(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        params.load(path)
    assert str(error.value).startswith(f"{path}{expected}")
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing; run `python -m sparring profile digits` to make it"):
        params.load(tmp_path / "params.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        params.load(tmp_path)


def test_numbers_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    text = (ROOT / "profiles" / "digits.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("weight_decay: 0.0005", "weight_decay: 5e-4"), encoding="utf-8")
    assert params.load(path).training.weight_decay == 0.0005


def test_root_is_the_main_repository_also_from_the_copy_of_a_queued_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_queue = tmp_path / ".dvc" / "tmp" / "exps" / "tmpx"
    copy_of_queue.mkdir(parents=True)
    (tmp_path / ".dvc" / "config").touch()
    monkeypatch.chdir(copy_of_queue)
    assert main_repository() == tmp_path
    monkeypatch.chdir(tmp_path)
    assert main_repository() == tmp_path

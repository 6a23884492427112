"""Attacks are functions from images to images; `find` looks one up by the method's name.

`attack(model, images, labels, **arguments)` takes and returns images (N, 3, H, W) in [0, 1]. An attack that needs
random numbers or other images has a parameter for them: `noise` (N, 3, H, W) and `starts` (N, restarts, 3, H, W) are
standard normal, `partners` (N, 3, H, W) are images of other classes. All are drawn by (seed, attack, index), so an
image's result does not depend on its neighbours.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sparring.attacks.autoattack import autoattack
from sparring.attacks.bim import bim
from sparring.attacks.cw import cw
from sparring.attacks.ddn import ddn
from sparring.attacks.deepfool import deepfool
from sparring.attacks.fgsm import fgsm
from sparring.attacks.gaussian import gaussian
from sparring.attacks.nst import nst
from sparring.attacks.pgd import pgd
from sparring.attacks.rfgsm import rfgsm
from sparring.attacks.torchattacks_adapter import run
from sparring.params.attacks import TORCHATTACKS

METHODS: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian,
    "fgsm": fgsm,
    "bim": bim,
    "deepfool": deepfool,
    "cw": cw,
    "nst": nst,
    "pgd": pgd,
    "ddn": ddn,
    "rfgsm": rfgsm,
    "autoattack": autoattack,
}


def find(method: str) -> Callable[..., Tensor]:
    """Return the attack of that name. The parameters' validation has checked that there is one."""
    return partial(run, method) if method.startswith(TORCHATTACKS) else METHODS[method]

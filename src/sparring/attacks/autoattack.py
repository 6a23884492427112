from torch import Tensor, nn

from sparring.attacks.losses import logits_of
from sparring.attacks.torchattacks_adapter import run
from sparring.params.attacks import autoattack_parts


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: str) -> Tensor:
    """Run the standard version of AutoAttack (Croce and Hein, 2020, arXiv 2003.01690). Its four parts have their
    authors' arguments. Each attacks the images that the parts before it did not fool.

    images: (N, 3, H, W) in [0, 1].  eps: radius of the ball; norm: linf | l2.  Returns images within the ball.
    """
    adversarial = images.clone()
    logits = logits_of(model, images)
    standing = logits.argmax(1) == labels
    for part in autoattack_parts(norm, eps, logits.shape[1]).values():
        rows = standing.nonzero()[:, 0]
        if not len(rows):
            break
        attacked = run(part.method, model, images[rows], labels[rows], **part.arguments)
        adversarial[rows] = attacked
        standing[rows] = logits_of(model, attacked).argmax(1) == labels[rows]
    return adversarial

import torch
from torch import Tensor, nn

from sparring.attacks.losses import margin

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam's own defaults
FAR = 1e6  # more than any margin: an image with a success is nearer than one without
PATIENCE = 12  # steps; with fewer, changes became larger than those of other libraries (docs/attacks.md)


def cw(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    c: float,
    kappa: float,
    steps: int,
    learning_rate: float,
    search_steps: int,
) -> Tensor:
    """Carlini and Wagner's L2 attack (2017, arXiv 1608.04644): Adam in tanh space.

    images: (N, 3, H, W) in [0, 1].  c: weight of the margin loss against the squared L2 distance.
    kappa: margin of the logits that counts as success.  steps, learning_rate: of Adam.
    search_steps: how many values of c each image tries, the first being `c`; the next are found by bisection.
    Whenever an image crosses the boundary, its momentum starts anew, as it would carry the image far beyond (adaptive
    restart: O'Donoghue and Candès, 2015, arXiv 1204.3982). An image leaves the batch when a fifth of the steps, or
    twelve, brought it no nearer to its first success, or after that no nearer success.
    Returns each image's own nearest success, or the image itself where there was none.
    """
    best, best_distance = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    with torch.no_grad():
        start = margin(model(images), labels)
    # The image itself is the nearest success there can be.
    best_distance[start <= -kappa] = 0
    low, high = torch.zeros_like(best_distance), torch.full_like(best_distance, torch.inf)
    weight = torch.full_like(best_distance, c)
    for _ in range(search_steps):
        rows = (best_distance > 0).nonzero()[:, 0]
        won = _minimise(model, images, labels, rows, weight, kappa, steps, learning_rate, best, best_distance)
        high = torch.where(won, weight, high)
        low = torch.where(won, low, weight)
        weight = torch.where(high.isinf(), 10 * low, (low + high) / 2)
    return best


def _minimise(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    weight: Tensor,
    kappa: float,
    steps: int,
    learning_rate: float,
    best: Tensor,
    best_distance: Tensor,
) -> Tensor:
    """Adam on the images `rows`, each at its own weight; renews best and best_distance; returns who won (N,)."""
    won = torch.zeros_like(labels, dtype=torch.bool)
    patience = max(steps // 5, PATIENCE)
    start, own, c = images[rows], labels[rows], weight[rows]
    # atanh of exactly ±1 is infinite; the float32 neighbours of the ends are as near as tanh space allows.
    flow = torch.atanh((2 * start - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    mean, square = torch.zeros_like(flow), torch.zeros_like(flow)
    least, since, age = torch.full_like(c, torch.inf), torch.zeros_like(c), torch.zeros_like(c)
    beyond = torch.zeros_like(own, dtype=torch.bool)
    for number in range(1, steps + 1):
        if len(rows) == 0:
            break
        adversarial, lead, distance, gradient = _descent(model, flow, start, own, c, kappa)
        success = lead <= -kappa
        won[rows[success]] = True
        nearer = success & (distance < best_distance[rows])
        best[rows[nearer]] = adversarial[nearer]
        best_distance[rows[nearer]] = distance[nearer]
        crossing = success & ~beyond
        beyond = success
        mean[crossing] = 0
        age = torch.where(crossing, 1, age + 1)
        mean.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = (square / (1 - BETA2**number)).sqrt_().add_(TINY)
        rate = learning_rate / (1 - BETA1**age)
        flow = flow.addcdiv_(mean.mul(rate.view(-1, 1, 1, 1)), root, value=-1)
        # Before its first success an image is judged by its margin, then by its nearest success.
        score = torch.where(won[rows], best_distance[rows] - FAR, lead)
        since = torch.where(score < least, 0, since + 1)
        least = torch.minimum(score, least)
        going = since < patience
        if not going.all():
            rows, start, own, c, least, since = (part[going] for part in (rows, start, own, c, least, since))
            flow, mean, square, age, beyond = (part[going] for part in (flow, mean, square, age, beyond))
    return won


def _descent(
    model: nn.Module, flow: Tensor, start: Tensor, labels: Tensor, c: Tensor, kappa: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The images (N, 3, H, W) that stand at `flow` in tanh space, their margins (N,), their squared distances from
    `start` (N,), and the gradient of the loss by `flow`."""
    flow = flow.detach().requires_grad_()
    images = (flow.tanh() + 1) / 2
    lead = margin(model(images), labels)
    distance = (images - start).square().flatten(1).sum(1)
    # As in the paper's f: nothing is won by going further past the boundary than kappa.
    loss = distance + c * lead.clamp(min=-kappa)
    gradient = torch.autograd.grad(loss.sum(), flow)[0]
    return images.detach(), lead.detach(), distance.detach(), gradient

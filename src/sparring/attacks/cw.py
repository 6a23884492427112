from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.attacks.graphs import in_a_graph, staying
from sparring.attacks.losses import logits_of, margin

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
    # The image itself is the nearest success there can be.
    best_distance[margin(logits_of(model, images), labels) <= -kappa] = 0
    low, high = torch.zeros_like(best_distance), torch.full_like(best_distance, torch.inf)
    weight = torch.full_like(best_distance, c)
    for _ in range(search_steps):
        won, best, best_distance = _minimise(
            model, images, labels, weight, kappa, steps, learning_rate, best, best_distance
        )
        high = torch.where(won, weight, high)
        low = torch.where(won, low, weight)
        weight = torch.where(high.isinf(), 10 * low, (low + high) / 2)
    return best


def _minimise(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    weight: Tensor,
    kappa: float,
    steps: int,
    learning_rate: float,
    best: Tensor,
    best_distance: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam on the images that are not nearest to themselves, each at its own weight: who won (N,), and the nearest
    successes so far with their squared distances."""
    patience = max(steps // 5, PATIENCE)
    whole = torch.zeros_like(labels, dtype=torch.bool), best.clone(), best_distance.clone()
    rows = torch.arange(len(labels), device=labels.device)
    now = _begin(images, labels, weight, best, best_distance)
    for number in range(steps):
        stay = staying(now["going"], number)
        if stay is not None:
            for each, name in zip(whole, ("won", "best", "nearest"), strict=True):
                each[rows] = now[name]
            rows, now = rows[stay], {name: part[stay] for name, part in now.items()}
        if len(rows) == 0:
            return whole
        _step(model, now, number + 1, kappa, learning_rate, patience)
    for each, name in zip(whole, ("won", "best", "nearest"), strict=True):
        each[rows] = now[name]
    return whole


def _begin(images: Tensor, labels: Tensor, weight: Tensor, best: Tensor, nearest: Tensor) -> dict[str, Tensor]:
    """All that Adam and the judgement of its steps know of each image, (N, …) each."""
    # atanh of exactly ±1 is infinite; the float32 neighbours of the ends are as near as tanh space allows.
    flow = torch.atanh((2 * images - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    never = torch.zeros_like(labels, dtype=torch.bool)
    return {
        "start": images,
        "own": labels,
        "c": weight,
        "flow": flow,
        "mean": torch.zeros_like(flow),
        "square": torch.zeros_like(flow),
        "age": torch.zeros_like(weight),
        "beyond": never,
        "least": torch.full_like(weight, torch.inf),
        "since": torch.zeros_like(weight),
        "going": nearest > 0,
        "won": never,
        "best": best,
        "nearest": nearest,
    }


def _step(
    model: nn.Module, now: dict[str, Tensor], number: int, kappa: float, learning_rate: float, patience: int
) -> None:
    """One step of Adam, the `number`-th; an image that is not going any more stays in the batch to no effect."""
    adversarial, lead, distance, gradient = _descent(
        model, now["flow"], now["start"], now["own"], now["c"], kappa=kappa
    )
    success = now["going"] & (lead <= -kappa)
    now["won"] = now["won"] | success
    nearer = success & (distance < now["nearest"])
    now["best"] = torch.where(nearer.view(-1, 1, 1, 1), adversarial, now["best"])
    now["nearest"] = torch.where(nearer, distance, now["nearest"])
    crossing = success & ~now["beyond"]
    now["beyond"] = success
    now["age"] = torch.where(crossing, 1, now["age"] + 1)
    mean = torch.where(crossing.view(-1, 1, 1, 1), 0, now["mean"]).mul_(BETA1).add_(gradient, alpha=1 - BETA1)
    square = (now["square"] * BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    root = (square / (1 - BETA2**number)).sqrt_().add_(TINY)
    rate = learning_rate / (1 - BETA1 ** now["age"])
    now["flow"] = now["flow"].addcdiv(mean.mul(rate.view(-1, 1, 1, 1)), root, value=-1)
    now["mean"], now["square"] = mean, square
    # Before its first success an image is judged by its margin, then by its nearest success.
    score = torch.where(now["won"], now["nearest"] - FAR, lead)
    now["since"] = torch.where(score < now["least"], 0, now["since"] + 1)
    now["least"] = torch.minimum(score, now["least"])
    now["going"] = now["going"] & (now["since"] < patience)


@in_a_graph
def _descent(
    model: Callable[[Tensor], Tensor], flow: Tensor, start: Tensor, labels: Tensor, c: Tensor, *, kappa: float
) -> tuple[Tensor, ...]:
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

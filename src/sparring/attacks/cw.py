from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.attacks.graphs import in_a_graph, rows_to_keep
from sparring.attacks.losses import logits_of, margin

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam's own defaults
FAR = 1e6  # more than any margin, so the score of an image with a success is below that of one without
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
    """Run Carlini and Wagner's L2 attack (2017, arXiv 1608.04644), with Adam in tanh space.

    images: (N, 3, H, W) in [0, 1].  c: weight of the margin loss against the squared L2 distance.
    kappa: margin of the logits that counts as success.  steps, learning_rate: of Adam.
    search_steps: how many values of c each image tries, the first being `c`; the next are found by bisection.
    Whenever an image crosses the boundary, its momentum starts anew, as it would carry the image far beyond (adaptive
    restart: O'Donoghue and Candès, 2015, arXiv 1204.3982). An image leaves the batch after a fifth of the steps, and
    PATIENCE at least, without progress: a smaller margin before its first success, a nearer success after it.
    Returns each image's nearest success, or the image itself where there was none.
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
    """Run Adam on each image at its own weight, but for images that succeed unchanged. Return which images succeeded
    (N,), and the nearest successes so far with their squared distances.

    best, best_distance: the nearest successes of earlier runs, and their squared distances, infinite without any.
    """
    patience = max(steps // 5, PATIENCE)
    results = torch.zeros_like(labels, dtype=torch.bool), best.clone(), best_distance.clone()
    rows = torch.arange(len(labels), device=labels.device)
    state = _initial_state(images, labels, weight, best, best_distance)
    for number in range(steps):
        stay = rows_to_keep(state["active"], number)
        if stay is not None:
            for result, name in zip(results, ("won", "best", "nearest"), strict=True):
                result[rows] = state[name]
            rows, state = rows[stay], {name: part[stay] for name, part in state.items()}
        if len(rows) == 0:
            return results
        _step(model, state, number + 1, kappa, learning_rate, patience)
    for result, name in zip(results, ("won", "best", "nearest"), strict=True):
        result[rows] = state[name]
    return results


def _initial_state(images: Tensor, labels: Tensor, weight: Tensor, best: Tensor, nearest: Tensor) -> dict[str, Tensor]:
    """Return the state of Adam and of the search for each image, (N, …) each.  nearest: squared distance of `best`."""
    # atanh of exactly ±1 is infinite; the float32 neighbours of the ends are as near as tanh space allows.
    latent = torch.atanh((2 * images - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    never = torch.zeros_like(labels, dtype=torch.bool)
    return {
        "images": images,
        "labels": labels,
        "c": weight,
        "latent": latent,
        "mean": torch.zeros_like(latent),
        "square": torch.zeros_like(latent),
        "age": torch.zeros_like(weight),  # of the mean, in steps
        "beyond": never,  # the boundary, after the last step
        "best_score": torch.full_like(weight, torch.inf),
        "stalled": torch.zeros_like(weight),  # steps since the best score
        "active": nearest > 0,
        "won": never,
        "best": best,
        "nearest": nearest,
    }


def _step(
    model: nn.Module, state: dict[str, Tensor], number: int, kappa: float, learning_rate: float, patience: int
) -> None:
    """Make the `number`-th step of Adam. An image that is no longer active stays in the batch to no effect."""
    adversarial, lead, distance, gradient = _descent(
        model, state["latent"], state["images"], state["labels"], state["c"], kappa=kappa
    )
    success = state["active"] & (lead <= -kappa)
    state["won"] = state["won"] | success
    nearer = success & (distance < state["nearest"])
    state["best"] = torch.where(nearer.view(-1, 1, 1, 1), adversarial, state["best"])
    state["nearest"] = torch.where(nearer, distance, state["nearest"])
    crossing = success & ~state["beyond"]
    state["beyond"] = success
    state["age"] = torch.where(crossing, 1, state["age"] + 1)
    mean = torch.where(crossing.view(-1, 1, 1, 1), 0, state["mean"]).mul_(BETA1).add_(gradient, alpha=1 - BETA1)
    square = (state["square"] * BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    root = (square / (1 - BETA2**number)).sqrt_().add_(TINY)
    rate = learning_rate / (1 - BETA1 ** state["age"])
    state["latent"] = state["latent"].addcdiv(mean.mul(rate.view(-1, 1, 1, 1)), root, value=-1)
    state["mean"], state["square"] = mean, square
    # Before its first success an image is judged by its margin, then by its nearest success.
    score = torch.where(state["won"], state["nearest"] - FAR, lead)
    state["stalled"] = torch.where(score < state["best_score"], 0, state["stalled"] + 1)
    state["best_score"] = torch.minimum(score, state["best_score"])
    state["active"] = state["active"] & (state["stalled"] < patience)


@in_a_graph
def _descent(
    model: Callable[[Tensor], Tensor], latent: Tensor, start: Tensor, labels: Tensor, c: Tensor, *, kappa: float
) -> tuple[Tensor, ...]:
    """Return the images (N, 3, H, W) that are at `latent` in tanh space, their margins (N,), their squared distances
    from `start` (N,), and the gradient of the loss by `latent`."""
    latent = latent.detach().requires_grad_()
    images = (latent.tanh() + 1) / 2
    lead = margin(model(images), labels)
    distance = (images - start).square().flatten(1).sum(1)
    # As in the paper's f: nothing is won by going further past the boundary than kappa.
    loss = distance + c * lead.clamp(min=-kappa)
    gradient = torch.autograd.grad(loss.sum(), latent)[0]
    return images.detach(), lead.detach(), distance.detach(), gradient

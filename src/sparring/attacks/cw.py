import torch
from torch import Tensor, nn


def cw(
    model: nn.Module, images: Tensor, labels: Tensor, *, c: float, kappa: float, steps: int, learning_rate: float
) -> Tensor:
    """Carlini and Wagner's L2 attack (2017, arXiv 1608.04644) at one fixed c: Adam in tanh space.

    images: (N, 3, H, W) in [0, 1].  c: weight of the margin loss against the squared L2 distance.
    kappa: margin of the logits that counts as success.  steps, learning_rate: of Adam.
    Returns each image's own nearest success, or the image itself where there was none.
    """
    # atanh of exactly ±1 is infinite; the float32 neighbours of the ends are as near as tanh space allows.
    flow = torch.atanh((2 * images - 1).clamp(-1 + 1e-6, 1 - 1e-6)).requires_grad_()
    optimizer = torch.optim.Adam([flow], learning_rate)
    own = torch.nn.functional.one_hot(labels, model(images[:1]).shape[1]).bool()
    best, best_distance = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    for _ in range(steps):
        adversarial = (flow.tanh() + 1) / 2
        logits = model(adversarial)
        distance = (adversarial - images).square().flatten(1).sum(1)
        margin = logits[own] - logits.masked_fill(own, -torch.inf).amax(1)
        # As in the paper's f: nothing is won by going further past the boundary than kappa.
        loss = distance + c * margin.clamp(min=-kappa)
        with torch.no_grad():
            better = (logits.argmax(1) != labels) & (margin <= -kappa) & (distance < best_distance)
            best_distance = torch.where(better, distance, best_distance)
            best = torch.where(better.view(-1, 1, 1, 1), adversarial, best)
        flow.grad = torch.autograd.grad(loss.sum(), flow)[0]
        optimizer.step()
    return best.detach()

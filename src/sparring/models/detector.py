"""The detector is a Transformer head that tells adversarial from clean images by a classifier's feature maps.

Method: "A Simple Structure For Building A Robust Model", arXiv 2204.11596, section on the detector.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.models.classifier import layers
from sparring.params.errors import InputError
from sparring.params.structures import Detector

HEADS = 4
MLP_RATIO = 4
TOKENS = 4200  # that pass through the layers at once on a CPU, so that a layer's output stays in its cache


class Dropout(nn.Dropout):
    """A faster nn.Dropout: on a CPU one random number decides on four elements, so p is rounded to a 65,536th.

    PyTorch draws one number for each element in turn, which took a tenth of a joint step and more.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.training or tokens.device.type != "cpu":
            return super().forward(tokens)
        random_bits = torch.empty(-(-tokens.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        thresholds = random_bits.view(torch.int16)[: tokens.numel()].view(tokens.shape)
        mask = thresholds >= round(self.p * 2**16) - 2**15
        return tokens * (mask.view(torch.uint8).to(tokens.dtype) / (1 - self.p))


class Layer(nn.Module):
    """A pre-norm Transformer encoder layer. It has dropout on projection and MLP, and none on the attention weights,
    which would rule out PyTorch's fused attention. (nn.MultiheadAttention copies its tokens to another order.)"""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.projection = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(MLP_RATIO * dim, dim),
            Dropout(dropout),
        )

    def forward(self, tokens: Tensor, class_only: bool = False) -> Tensor:
        """Transform tokens (N, T, dim), the class token first.  class_only: return that token alone (N, 1, dim)."""
        normed = self.norm1(tokens)
        if class_only:
            tokens, attended = tokens[:, :1], self._for_class_token(normed)
        else:
            key, value = (_heads(part) for part in self.key_value(normed).chunk(2, -1))
            attended = _attend(_heads(self.query(normed)), key, value)
        tokens = tokens + self.dropout(self.projection(attended.transpose(1, 2).flatten(2)))
        return tokens + self.mlp(self.norm2(tokens))

    def _for_class_token(self, normed: Tensor) -> Tensor:
        """Return the attention's output for the class token (N, heads, 1, dim / heads).

        With a single query, it is cheaper to map the query to the tokens' space than every token to keys and values:
        q·(K x + k) = (Kᵀ q)·x + a number that is the same for all tokens, and Σ w (V x + v) = V (Σ w x) + v.
        """
        query = _heads(self.query(normed[:, :1]))
        key, value = self.key_value.weight.unflatten(0, (2, HEADS, -1))  # each (heads, dim / heads, dim)
        bias = self.key_value.bias.unflatten(0, (2, HEADS, 1, -1))[1]
        key_queries, tokens = (query @ key).transpose(1, 2), normed[:, None]
        mixed = F.scaled_dot_product_attention(key_queries, tokens, tokens, scale=query.shape[-1] ** -0.5)
        return mixed.transpose(1, 2) @ value.mT + bias


def _heads(tokens: Tensor) -> Tensor:
    return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention by PyTorch's fused path; but written out in bfloat16 on a CPU, where that path is slow
    (docs/training.md)."""
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class TransformerDetector(nn.Module):
    """Tells clean from adversarial images by feature maps, resized to the `centre` map's shape and read as tokens."""

    def __init__(self, settings: Detector, shapes: dict[str, tuple[int, int, int]]) -> None:
        """shapes: (channels, height, width) of every map of the classifier, by name.

        Raises InputError where the centre is none of them, or its tokens cannot be split among the heads.
        """
        super().__init__()
        names = layers(shapes)
        if settings.centre not in names:
            raise InputError(
                f"params.yaml: detector.centre is {settings.centre}; this network has {', '.join(names)} for images of "
                "data.image_size; use one of them"
            )
        self.inputs = tuple(names if settings.input == "full" else names[:1])
        self.by_channel = settings.tokens == "channel" or (settings.tokens == "auto" and settings.input == "full")
        centre = shapes[settings.centre]
        self.embed = nn.ModuleDict({name: _to_centre(shapes[name], centre) for name in self.inputs})
        channels, positions = centre[0] * len(self.inputs), centre[1] * centre[2]
        count, dim = (channels, positions) if self.by_channel else (positions, channels)
        if dim % HEADS:
            raise InputError(
                f"params.yaml: detector.centre is {settings.centre}; its tokens of {dim} numbers cannot be split among "
                f"{HEADS} heads; use another centre, detector.tokens or network"
            )
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, count + 1, dim))
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(Layer(dim, settings.dropout) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 2)

    @property
    def last_map(self) -> str:
        """Return the name of the deepest feature map that the detector reads."""
        return self.inputs[-1]

    def token(self, maps: dict[str, Tensor]) -> Tensor:
        """Return the normed class token z (N, dim) of equation 1."""
        tokens = torch.cat([self.embed[name](maps[name]) for name in self.inputs], 1).flatten(2)
        if not self.by_channel:
            tokens = tokens.transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.dropout(tokens + self.position)
        parts = -(-tokens.shape[0] * tokens.shape[1] // TOKENS) if tokens.device.type == "cpu" else 1
        return self.norm(torch.cat([self._class_token(part) for part in tokens.tensor_split(max(parts, 1))]))

    def _class_token(self, tokens: Tensor) -> Tensor:
        """Return the class token (N, dim) after all layers.  tokens: (N, T, dim), the class token first."""
        for number, layer in enumerate(self.layers, 1):
            tokens = layer(tokens, class_only=number == len(self.layers))
        return tokens[:, 0]

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """Return logits (N, 2): clean, adversarial."""
        return self.head(self.token(maps))


def _to_centre(shape: tuple[int, int, int], centre: tuple[int, int, int]) -> nn.Module:
    """Return convolutions that bring a map to the centre map's channels, height and width."""
    channels, width = shape[0], centre[0]
    size, goal = shape[1:], centre[1:]
    if size == goal:
        return nn.Conv2d(channels, width, 1)
    halvings = _halvings(size, goal)
    if halvings:
        return nn.Sequential(*(nn.Conv2d(width if step else channels, width, 3, 2, 1) for step in range(halvings)))
    doublings = _halvings(goal, size)
    if doublings and goal == tuple(side * 2**doublings for side in size):
        # As published, the channels are halved with each doubling of the sides: 512 → 256 → 128 for layer4.
        widths = [channels, *(width * 2**power for power in reversed(range(doublings)))]
        return nn.Sequential(*(nn.ConvTranspose2d(*pair, 2, 2) for pair in itertools.pairwise(widths)))
    # For any other ratio, one convolution has the stride and the kernel that give exactly that size.
    smaller = size[0] > goal[0]
    large, small = (size, goal) if smaller else (goal, size)
    stride = (large[0] // small[0], large[1] // small[1])
    kernel = (large[0] - (small[0] - 1) * stride[0], large[1] - (small[1] - 1) * stride[1])
    kind = nn.Conv2d if smaller else nn.ConvTranspose2d
    return kind(channels, width, kernel, stride)


def _halvings(size: tuple[int, ...], goal: tuple[int, ...]) -> int:
    """Count the 3×3 convolutions of stride 2, which round up, that lead from one size to another; 0 where none do."""
    count = 0
    while max(size) > max(goal):
        size = tuple(-(-side // 2) for side in size)
        count += 1
    return count if size == goal else 0

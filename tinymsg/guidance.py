"""Multiscale structure guidance (Ren 2023, Fig. 3): what should the sharp image look like, seen from afar?

For each scale k the blurry image is made gray and 2^k times smaller: colour, fine texture and most of the blur
kernel are gone, coarse structure is left. A small network predicts the sharp image at that scale; what it has
understood is handed to the denoiser. All of it depends on x alone: computed once per image, not once per step.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .schedule import Image
from .unet import NO_FEATURES, Features, conv, zeroed

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
TARGETS = ("gray", "rgb", "none")
INJECT = ("features", "structure")
HOW = ("add", "concat", "both")
_CONCAT_CHANNELS = 4  # a scale, where features (not the structure itself) are concatenated


def to_gray(image: Image) -> Float[Tensor, "b 1 h w"]:
    """Luma of an RGB image; one channel passes unchanged."""
    if image.shape[1] == 1:
        return image
    red, green, blue = image.split(1, dim=1)  # scalars, not a tensor: nothing to copy to the GPU
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def downsample(image: Image, k: int) -> Float[Tensor, "b c h_k w_k"]:
    """2^k times smaller, antialiased (phi_k of Ren 2023). Images of height 1 shrink along their width only.

    >>> downsample(torch.ones(1, 3, 16, 24), k=3).shape
    torch.Size([1, 3, 2, 3])
    """
    h, w = image.shape[-2:]
    image = image.float()  # the antialiased kernel has no bf16 on the CPU
    return F.interpolate(image, size=(max(h >> k, 1), w >> k), mode="bilinear", antialias=True, align_corners=False)


def structure_targets(y0: Image, scales: tuple[int, ...], target: str = "gray") -> list[Float[Tensor, "b _ _ _"]]:
    """The sharp image as the guidance must predict it: one tensor per scale, gray or RGB."""
    y0 = to_gray(y0) if target != "rgb" else y0
    return [downsample(y0, k) for k in scales]


class _Block(nn.Module):
    """conv, SiLU, conv plus the skip; no normalisation, so that brightness and contrast survive."""

    def __init__(self, width: int, dims: int):
        super().__init__()
        self.conv_1, self.conv_2 = conv(width, width, dims), conv(width, width, dims)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv_2(F.silu(self.conv_1(h)))


class StructureNet(nn.Module):
    """One scale's network: gray image -> (features of the last residual block, predicted sharp image).

    outputs: channels of the prediction; 0 leaves it out.
    """

    def __init__(self, outputs: int, width: int, blocks: int, dims: int):
        super().__init__()
        self.conv_in = conv(1, width, dims)
        self.blocks = nn.Sequential(*[_Block(width, dims) for _ in range(blocks)])
        # Starts by predicting the blurry image itself
        self.head = zeroed(conv(width, outputs, dims)) if outputs else None

    def forward(self, gray: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.blocks(self.conv_in(gray))
        return h, None if self.head is None else gray + self.head(F.silu(h))


class MultiscaleGuidance(nn.Module):
    """features, predictions = guidance(x).

    Args:
        widths: the UNet's channels at each level; scale k joins the level of its size: k - log2(fold).
        scales: which k, e.g. (1, 2, 3) as in the paper, (2, 3) for coarse ones only.
        target: what is regressed: "gray" (the paper's), "rgb", or "none" (no regression loss: the control).
        inject: "features" of the last block (the paper's), or the predicted "structure" itself.
        how: "add" to the encoder (the paper's), "concat" to the UNet's input, or "both".
        fold: the UNet's.
        stop_gradient: True cuts the denoiser's gradient, so that the branch learns from its own loss alone.
    Returns of a call on x (b, c, h, w) in [-1, 1]:
        features: `Features` for the UNet.
        predictions: one (b, 1 or 3, h / 2^k, w / 2^k) per scale; () with target "none".
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        scales: tuple[int, ...] = (1, 2, 3),
        target: str = "gray",
        inject: str = "features",
        how: str = "add",
        stop_gradient: bool = False,
        width: int = 32,
        blocks: int = 3,
        dims: int = 2,
        fold: int = 1,
    ):
        super().__init__()
        finest = fold.bit_length() - 1  # the scale of the UNet's first level
        for name, value, known in (("target", target, TARGETS), ("inject", inject, INJECT), ("how", how, HOW)):
            if value not in known:
                raise ValueError(f"unknown guidance {name} {value!r}; known: {', '.join(known)}")
        low, high = max(finest, 1), finest + len(widths) - 1
        if not scales or len(set(scales)) != len(scales) or not all(low <= k <= high for k in scales):
            raise ValueError(f"scales must be distinct and within {low} .. {high}, got {scales}")
        if stop_gradient and target == "none":
            raise ValueError("stop_gradient with target 'none' leaves nothing for guidance to learn from: change one")
        self.scales, self.target, self.inject, self.stop_gradient = tuple(scales), target, inject, stop_gradient
        structure = 3 if target == "rgb" else 1
        outputs = 0 if target == "none" and inject == "features" else structure  # no weights that nothing trains
        self.nets = nn.ModuleList([StructureNet(outputs, width, blocks, dims) for _ in scales])
        source = width if inject == "features" else structure
        self.to_encoder, self.to_input = nn.ModuleList(), nn.ModuleList()
        if how in ("add", "both"):
            self.to_encoder.extend([conv(source, widths[k - finest], dims, size=1) for k in scales])
        if how in ("concat", "both") and inject == "features":
            self.to_input.extend([conv(source, _CONCAT_CHANNELS, dims, size=1) for _ in scales])
        per_scale = _CONCAT_CHANNELS if inject == "features" else structure
        self.concat_channels = len(scales) * per_scale if how in ("concat", "both") else 0

    def forward(self, x: Image) -> tuple[Features, tuple[Tensor, ...]]:
        gray = to_gray(x)
        injected, predictions = [], []
        for k, net in zip(self.scales, self.nets, strict=True):
            hidden, prediction = net(downsample(gray, k))
            source = hidden if self.inject == "features" else prediction
            injected.append(source.detach() if self.stop_gradient else source)
            predictions.append(prediction)
        add = {k: project(s) for k, s, project in zip(self.scales, injected, self.to_encoder, strict=False)}
        concat = None
        if self.concat_channels:
            maps = injected
            if self.to_input:
                maps = [project(s) for s, project in zip(injected, self.to_input, strict=True)]
            concat = torch.cat([F.interpolate(m, size=x.shape[-2:], mode="bilinear") for m in maps], dim=1)
        return Features(add, concat), tuple(predictions) if self.target != "none" else ()


class NoGuidance(nn.Module):
    """The plain icDPM: no features, no predictions, no parameters."""

    scales: tuple[int, ...] = ()
    target, concat_channels = "none", 0

    def forward(self, x: Tensor) -> tuple[Features, tuple[Tensor, ...]]:
        return NO_FEATURES, ()

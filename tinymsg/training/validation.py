"""Validation while a model trains: fixed pictures and fixed noise.

Real pairs and procedural scenes are ones that training never sees. Of photographs under synthetic blur it sees the same
pictures, otherwise cut and blurred: such scores do not distinguish learning from knowing by heart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..data import Pairs, to_display, write_image
from ..evaluate import VALIDATION_SEED, available, domain_pairs, measure
from ..model import Recipe
from ..rng import Draws
from ..sample import Setting, restore
from ..train import TrainState, loss_terms

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels (sqrt(alpha_bar)) of the denoising loss
METRICS = ("psnr", "ssim", "lpips")


class RealPairs(Pairs, Protocol):
    """Pairs of whole pictures, whose crops draw the picture first, from Draws(seed, index)."""

    seed: int
    names: list[str]  # SEQUENCE/NAME

    def image(self, i: int) -> tuple[Tensor, Tensor]: ...


class WithoutHeldOut:
    """Training pairs without some pictures, by number: an index that draws one of those is replaced by another."""

    def __init__(self, pairs: RealPairs, held_out: list[int]):
        self.pairs, self.held_out = pairs, torch.tensor(held_out)
        self.name = f"{pairs.name}, without {len(held_out)} held out"

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), as of the source, never from a picture that is held out."""
        index, seed, count = index.cpu(), self.pairs.seed, len(self.pairs.names)
        while (taken := torch.isin(Draws(seed, index).integers(count), self.held_out)).any():
            index = torch.where(taken, index + 2**40, index)  # beyond any index of a training
        return self.pairs.crops(index, size)


def choose_held_out(names: list[str]) -> tuple[list[int], str]:
    """(numbers of the pairs to hold out, the same in words), for names SEQUENCE/NAME.

    The last sequence: neighbouring frames show the same scene, so single frames held out would be known from
    their neighbours. Where names tell no sequences, or the last is over a fifth of all, the last twentieth.
    """
    if len(names) < 2:
        raise ValueError("a single pair cannot be both learnt from and held out for validation; give --validation DATA")
    sequences = [name.rpartition("/")[0] for name in names]
    last = [i for i, sequence in enumerate(sequences) if sequence == max(sequences)]
    if len(last) <= len(names) / 5:
        return last, f"the {len(last)} pairs of the training sequence {sequences[last[0]]}"
    last = list(range(len(names) - max(1, len(names) // 20), len(names)))
    return last, f"the last {len(last)} of {len(names)} training pairs"


def centre_crops(pairs: RealPairs, numbers: list[int], count: int, size: int) -> tuple[Tensor, Tensor]:
    """(y0, x), both (n, 3, s, s): `count` of the given whole pictures, evenly spaced, cut to their centres.

    s is `size`, or less where a picture is smaller, rounded down to a multiple of 8.
    """
    count = min(count, len(numbers))
    images = [torch.cat(pairs.image(numbers[i * len(numbers) // count])) for i in range(count)]
    side = min(size, *(edge for image in images for edge in image.shape[-2:])) // 8 * 8
    if side == 0:
        raise ValueError(f"{pairs.name}: pictures under 8 pixels cannot be restored")
    cut = []
    for image in images:
        top, left = ((edge - side) // 2 for edge in image.shape[-2:])
        cut.append(image[..., top : top + side, left : left + side])
    y0, x = torch.stack(cut, dim=1)
    return y0, x


@dataclass(frozen=True)
class Validation:
    """Scores the averaged weights; draws from its own generators alone: training goes on as if nobody had looked."""

    pictures: tuple[Tensor, Tensor]  # (y0, x), both (n, c, h, w) in [-1, 1], on the model's device
    name: str  # what they are
    setting: Setting = Setting()

    @torch.inference_mode()
    def __call__(self, state: TrainState, folder: Path) -> dict[str, float]:
        """step, psnr, ssim, lpips, losses at fixed noise, NaN for what cannot be computed.

        Also writes folder/STEP.png: blurry, restored, sharp, a row per pair.
        """
        y0, x = self.pictures
        restored = restore(state.ema_model, x, self.setting, torch.Generator(x.device).manual_seed(VALIDATION_SEED))
        scores = measure(restored, y0, available(METRICS, min(x.shape[-2:]))[0])
        means = {name: sum(scores[name]) / len(x) if name in scores else float("nan") for name in METRICS}
        generator = torch.Generator(x.device).manual_seed(VALIDATION_SEED + 1)
        eps = torch.randn(y0.shape, generator=generator, device=x.device)
        losses, guidance = {}, 0.0
        for value in LEVELS:
            level = torch.full((len(x),), value, device=x.device)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=state.bf16):
                denoise, guidance = loss_terms(state.ema_model, y0, x, level, eps, state.training.loss)
            losses[f"denoise_{value}"] = float(denoise)
        mean = {"denoise": sum(losses.values()) / len(losses), "guidance": float(guidance)}  # guidance sees no noise
        strip = torch.cat([torch.cat(list(images), dim=-2) for images in (x, restored, y0)], dim=-1)
        write_image(Path(folder) / f"{state.step:08d}.png", to_display(strip).expand(3, -1, -1))
        return {"step": state.step} | means | mean | losses


def synthetic_validation(recipe: Recipe, count: int, device: torch.device) -> Validation:
    """Pairs of the training domain that training does not see; their name says what is new about them."""
    c, gray = recipe.training, recipe.network.channels == 1
    pairs = domain_pairs(c.domain, c.content, count, VALIDATION_SEED, device, gray=gray)
    fresh = c.content == "scenes" or pairs.domain.new_content
    what, rest = ("fresh crops", "") if fresh else ("crops", ", of training's own pictures blurred anew")
    return Validation(pairs.crops(torch.arange(count), c.crop), f"{count} {what} of {pairs.name}{rest}")

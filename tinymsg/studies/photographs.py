"""Which weights, and which setting of the sampler, may be the default of `deblur`: measured, then chosen by a rule.

Three sets of photographs: "real" (pairs of a camera's), "blurred" (sharp ones under the domain everyday) and "sharp"
(sharp ones that have to stay as they are). Beside the networks stand the methods that need no training.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..blur import convolve
from ..data import Contents, SyntheticPairs, to_display, to_model
from ..evaluate import TEST_SEED, measure, summary
from ..machine import synchronize
from ..model import Model
from ..sample import Setting, restore
from .signals import gauss_kernel

METRICS = ("psnr", "lpips")
BATCH = 4  # pictures at a time

# The rule. Safe: leaves sharp photographs as they are, and makes no real pair much worse and real pairs on average
# better. A quality's setting is the safe one nearest to the truth by LPIPS (Zhang 2018), of real and blurred pictures
# alike, among those of so many network evaluations that gain at least half of the best one's PSNR on real pairs. The
# default weights are those that have the default's setting when the settings of all shipped weights (of all, if none
# is) stand for choice together
LEAST_SHARP = 35.0  # dB of sharp photographs against themselves, on average
MOST_HARM = 0.5  # dB that a real pair may lose
SHARE_OF_GAIN = 0.5
EVALUATIONS = {"fast": 1, "default": 8, "best": 20}  # at most, all samples together

Sets = dict[str, tuple[Tensor, Tensor]]  # name: (y0, x), both (n, 3, h, w) in [-1, 1]


def candidates(kind: str, start: str | None = None) -> list[Setting]:
    """The settings that are tried: of a regression its one, of a diffusion model few steps and means of samples.

    start: a regression's weights. Predict and refine (Whang 2022): few steps from its answer are tried, too.
    """
    settings = [Setting(steps=1, max_noise=0.99)]
    if kind == "diffusion":
        ways = [(sampler, grid) for sampler in ("ancestral", "dpm_solver") for grid in ("linear", "cosine")]
        settings += [Setting(sampler, steps, 0.99, grid) for steps in (2, 3, 5, 8) for sampler, grid in ways]
        settings += [Setting("ancestral", n, 0.99, "cosine", samples) for n in (2, 5) for samples in (2, 4)]
        if start:
            settings += [Setting(steps=n, max_noise=b, start=start) for n in (1, 2, 4) for b in (0.1, 0.3, 0.6, 0.9)]
    return settings


def photograph_sets(real: tuple[Tensor, Tensor], sharp: Contents, size: int = 256, count: int = 24) -> Sets:
    """The three sets: the real pairs as given, `count` blurred crops, the centre of every sharp photograph."""
    cut = []
    for image in sharp.images:
        top, left = ((edge - size) // 2 for edge in image.shape[-2:])
        cut.append(to_model(image[:, top : top + size, left : left + size].float() / 255))
    blurred = SyntheticPairs(sharp, "everyday", TEST_SEED).crops(torch.arange(count), size)
    return {"real": real, "blurred": blurred, "sharp": (torch.stack(cut), torch.stack(cut))}


def score(answer: Callable[[Tensor], Tensor], sets: Sets) -> dict:
    """{set: {metric: one value per picture}} of answer(x (b, 3, h, w)) -> y0_hat, and seconds per million pixels."""
    scores: dict = {name: {metric: [] for metric in METRICS} for name in sets}
    seconds, pixels = 0.0, 0
    for name, (y0, x) in sets.items():
        for truth, blurry in zip(y0.split(BATCH), x.split(BATCH), strict=True):
            before = time.perf_counter()
            y0_hat = answer(blurry)
            synchronize(x.device)
            seconds, pixels = seconds + time.perf_counter() - before, pixels + blurry[:, 0].numel()
            for metric, values in measure(y0_hat, truth, METRICS).items():
                scores[name][metric] += [round(value, 4) for value in values]
    return {"scores": scores, "seconds_a_megapixel": round(1e6 * seconds / pixels, 3)}


def restorer(model: Model, setting: Setting) -> Callable[[Tensor], Tensor]:
    """x -> y0_hat, with the same noise for every batch."""
    return lambda x: restore(model, x, setting, torch.Generator(x.device).manual_seed(TEST_SEED))


def unsharp_mask(x: Tensor, sigma: float = 2.0, amount: float = 1.0) -> Tensor:
    """What every photo editor has: the picture plus what a Gaussian blur of `sigma` pixels takes from it."""
    return (x + amount * (x - to_model(convolve(to_display(x), gaussian(sigma))))).clamp(-1, 1)


def richardson_lucy(x: Tensor, sigma: float = 2.0, iterations: int = 15) -> Tensor:
    """Richardson (1972) and Lucy (1974), as in scikit-image; the kernel is a guess: a Gaussian of `sigma` pixels."""
    from skimage.restoration import richardson_lucy as deconvolve

    kernel, display = gaussian(sigma)[0].numpy(), to_display(x).cpu().numpy()
    sharper = np.stack([[deconvolve(channel, kernel, iterations) for channel in image] for image in display])
    return to_model(torch.from_numpy(sharper).to(x)).clamp(-1, 1)


def gaussian(sigma: float) -> Tensor:
    """(1, k, k), a kernel that sums to 1 and reaches three sigma."""
    (kernel,) = gauss_kernel(sigma, 2 * round(3 * sigma) + 1)
    return torch.outer(kernel, kernel)[None]


UNTRAINED: dict[str, Callable[[Tensor], Tensor]] = {
    "blurry": lambda x: x,
    "unsharp mask": unsharp_mask,
    "Richardson-Lucy": richardson_lucy,
}


def summarise(scores: dict) -> dict:
    """{set: {metric: {mean, low, high}}} with intervals over the pictures."""
    return {name: {metric: summary(values) for metric, values in metrics.items()} for name, metrics in scores.items()}


def mean(row: dict, name: str, metric: str) -> float:
    """Of one row's pictures in a set."""
    values = row["scores"][name][metric]
    return sum(values) / len(values)


def is_safe(row: dict, blurry: dict) -> bool:
    """Whether a row of `score` may be given to people who do not look closely; `blurry` is the row of the input."""
    worst = min(a - b for a, b in zip(row["scores"]["real"]["psnr"], blurry["scores"]["real"]["psnr"], strict=True))
    return mean(row, "sharp", "psnr") >= LEAST_SHARP and worst >= -MOST_HARM and gain(row, blurry) > 0


def gain(row: dict, blurry: dict) -> float:
    """dB on real pairs, on average."""
    return mean(row, "real", "psnr") - mean(blurry, "real", "psnr")


def evaluations(setting: dict) -> int:
    """Of the networks for one picture, all samples together."""
    return (setting.get("start") is not None) + setting["steps"] * setting["samples"]


def choose(rows: list[dict], blurry: dict, most: int) -> tuple[dict, bool]:
    """(the row that the rule chooses among those of at most so many evaluations, whether it is safe).

    rows: each with "setting", {"steps", "samples", ...}, and what `score` says of it. Where none is safe, the one that
    leaves sharp photographs most as they are.
    """
    rows = [row for row in rows if evaluations(row["setting"]) <= most]
    safe = [row for row in rows if is_safe(row, blurry)]
    if not safe:
        return max(rows, key=lambda row: mean(row, "sharp", "psnr")), False
    enough = SHARE_OF_GAIN * max(gain(row, blurry) for row in safe)
    good = [row for row in safe if gain(row, blurry) >= enough]
    return min(good, key=lambda row: mean(row, "real", "lpips") + mean(row, "blurred", "lpips")), True

"""How few network evaluations are enough: samplers and starting points at equal numbers of evaluations.

Quality against cost. A chain may start from pure noise, or nearer to the goal: from an estimate that is noised part of
the way (CCDF, Chung 2022).
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..data import Pairs
from ..evaluate import TEST_SEED, available, measure, summary
from ..machine import synchronize
from ..model import Model
from ..sample import SAMPLERS, Setting, restore
from ..schedule import max_noise_for

EVALUATIONS = (1, 2, 4, 8, 16, 32, 64, 250)
FROM_NOISE = 0.01  # alpha_bar_T of chains from pure noise: what is left of the signal's power there
FROM_ESTIMATE = 0.5  # of chains from an estimate: as much signal as noise
Start = Callable[[Tensor], Tensor]


def step_curves(
    model: Model,
    pairs: Pairs,
    count: int,
    size: int,
    starts: dict[str, Start] | None = None,
    evaluations: tuple[int, ...] = EVALUATIONS,
    samplers: tuple[str, ...] = tuple(SAMPLERS),
    metrics: tuple[str, ...] = ("psnr", "ssim", "lpips", "spectral"),
    batch: int = 25,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """Score every sampler from every start with each number of evaluations. The same pictures and noise for all.

    Args:
        starts: {name: x -> estimate}, each of x's shape; "noise" is always among them.
        count, size: pictures, and their side in pixels.
    Returns: rows {sampler, start, evaluations, max_noise, alpha_bar_T, seconds an image, metric: {mean, low, high}}.
        All chains from noise end at the same alpha_bar_T, whatever their length, and so do all from an estimate.
    """
    usable, _ = available(metrics)
    parts = [pairs.crops(index, size) for index in torch.arange(count).split(batch)]
    estimates: dict[str, list[Tensor | None]] = {"noise": [None] * len(parts)}
    for name, start in (starts or {}).items():
        estimates[name] = [start(x) for _, x in parts]
    rows = []
    for name, begin in estimates.items():
        alpha_bar_T = FROM_NOISE if name == "noise" else FROM_ESTIMATE
        for sampler in samplers:
            for n in evaluations:
                max_noise = max_noise_for(n, alpha_bar_T)
                row = {
                    "sampler": sampler,
                    "start": name,
                    "evaluations": n,
                    "max_noise": round(max_noise, 6),
                    "alpha_bar_T": alpha_bar_T,
                }
                rows.append(row | _score(model, parts, begin, sampler, n, max_noise, usable))
                progress(
                    f"{sampler} from {name}, {n} evaluations: "
                    + ", ".join(f"{m} {rows[-1][m]['mean']}" for m in usable)
                )
    return rows


def _score(
    model: Model,
    parts: list[tuple[Tensor, Tensor]],
    begin: list[Tensor | None],
    sampler: str,
    steps: int,
    max_noise: float,
    metrics: tuple[str, ...],
) -> dict:
    values: dict[str, list[float]] = {metric: [] for metric in metrics}
    seconds = 0.0
    for number, ((y0, x), start) in enumerate(zip(parts, begin, strict=True)):
        generator = torch.Generator(x.device).manual_seed(TEST_SEED + number)
        before = time.perf_counter()
        output = restore(model, x, Setting(sampler, steps, max_noise), generator, start=start)
        synchronize(x.device)
        seconds += time.perf_counter() - before
        for metric, scores in measure(output, y0, metrics).items():
            values[metric].extend(scores)
    return {"seconds": round(seconds / sum(len(x) for _, x in parts), 5)} | {m: summary(v) for m, v in values.items()}


def fewest(rows: list[dict], sampler: str, start: str, slack_db: float = 0.1, slack_spectral: float = 0.02) -> int:
    """The smallest number of evaluations that is as good as the largest: PSNR within `slack_db` dB below, spectral
    distance within the share `slack_spectral` above."""
    mine = sorted((r for r in rows if (r["sampler"], r["start"]) == (sampler, start)), key=lambda r: r["evaluations"])
    if not mine:
        raise ValueError(f"no rows of {sampler!r} from {start!r}")
    last = mine[-1]
    return next(
        r["evaluations"]
        for r in mine
        if r["psnr"]["mean"] >= last["psnr"]["mean"] - slack_db
        and r["spectral"]["mean"] <= last["spectral"]["mean"] * (1 + slack_spectral)
    )

"""How few network evaluations are enough: samplers and starting points at equal numbers of evaluations.

A chain may start from pure noise, or nearer to the goal: from an estimate that is noised part of the way (CCDF, Chung
2022).
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..data import Pairs
from ..evaluate import METRICS, TEST_SEED, available, measure, summary
from ..machine import synchronize
from ..model import Model
from ..sample import SAMPLERS, Setting, restore
from ..schedule import max_noise_for

EVALUATIONS = (1, 2, 4, 8, 16, 32, 64, 250)
FROM_NOISE = 0.01  # alpha_bar_T of chains from pure noise: what is left of the signal's power there
FROM_ESTIMATE = 0.5  # of chains from an estimate: as much signal as noise
BATCH = 25  # pictures at a time


def step_curves(
    model: Model,
    pairs: Pairs,
    count: int,
    size: int,
    starts: dict[str, Callable[[Tensor], Tensor]],
    evaluations: tuple[int, ...] = EVALUATIONS,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """Score every sampler from every start with each number of evaluations. The same pictures and noise for all.

    Args:
        count, size: pictures, and their side in pixels.
        starts: {name: x -> estimate}, each of x's shape; "noise" is always among them.
    Returns: rows {sampler, start, evaluations, max_noise, alpha_bar_T, seconds an image, metric: {mean, low, high}}.
        All chains from noise end at the same alpha_bar_T, whatever their length, and so do all from an estimate.
    """
    metrics, _ = available(tuple(METRICS), size)
    parts = [pairs.crops(index, size) for index in torch.arange(count).split(BATCH)]
    estimates = {name: [start(x) for _, x in parts] for name, start in starts.items()}
    rows = []
    for start, sampler, n in [(a, s, n) for a in ("noise", *starts) for s in SAMPLERS for n in evaluations]:
        alpha_bar_T = FROM_NOISE if start == "noise" else FROM_ESTIMATE
        setting = Setting(sampler, n, max_noise_for(n, alpha_bar_T))
        values: dict[str, list[float]] = {metric: [] for metric in metrics}
        seconds = 0.0
        for number, (y0, x) in enumerate(parts):
            generator = torch.Generator(x.device).manual_seed(TEST_SEED + number)
            before = time.perf_counter()
            output = restore(model, x, setting, generator, start=estimates[start][number] if start in starts else None)
            synchronize(x.device)
            seconds += time.perf_counter() - before
            for metric, scores in measure(output, y0, metrics).items():
                values[metric].extend(scores)
        row = {"sampler": sampler, "start": start, "evaluations": n, "max_noise": round(setting.max_noise, 6)}
        row |= {"alpha_bar_T": alpha_bar_T, "seconds": round(seconds / count, 5)}
        rows.append(row | {metric: summary(v) for metric, v in values.items()})
        found = ", ".join(f"{metric} {rows[-1][metric]['mean']}" for metric in metrics)
        progress(f"{sampler} from {start}, {n} evaluations: {found}")
    return rows


def fewest(rows: list[dict], sampler: str, start: str, slack_db: float = 0.1, slack_spectral: float = 0.02) -> int:
    """The smallest number of evaluations that is as good as the largest: PSNR within `slack_db` dB below, spectral
    distance within the share `slack_spectral` above."""
    mine = sorted((r for r in rows if (r["sampler"], r["start"]) == (sampler, start)), key=lambda r: r["evaluations"])
    psnr = mine[-1]["psnr"]["mean"] - slack_db
    spectral = mine[-1]["spectral"]["mean"] * (1 + slack_spectral)
    return next(r["evaluations"] for r in mine if r["psnr"]["mean"] >= psnr and r["spectral"]["mean"] <= spectral)

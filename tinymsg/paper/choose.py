"""The sampler's setting: a search over steps and noise on held-out crops; for the paper, resumable by cell."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ..data import Pairs
from ..evaluate import HIGHER_IS_BETTER, METRICS, VALIDATION_SEED, available, measure
from ..machine import synchronize
from ..model import Model
from ..sample import Setting, restore
from .protocol import Ledger, Row

GRID_STEPS = (1, 2, 3, 5, 10, 20)
GRID_MAX_NOISE = (0.2, 0.5, 0.7, 0.9, 0.99)


def grid_search(
    model: Model,
    pairs: Pairs,
    count: int,
    size: int,
    steps: tuple[int, ...] = GRID_STEPS,
    max_noise: tuple[float, ...] = GRID_MAX_NOISE,
    sampler: str = "ancestral",
    metrics: tuple[str, ...] = tuple(METRICS),
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """Steps x maximum noise, as DvSR (Whang 2022, supplement Sec. 6) and Ren 2023 search them.

    Returns: one dict per cell: steps, max_noise, alpha_bar_T, seconds per image, and the mean of each metric that is
        available here.
    Where alpha_bar_T is large the chain starts from more noise than the network is told: such cells leave noise.
    """
    y0, x = pairs.crops(torch.arange(count), size)
    metrics, _ = available(metrics, size)
    cells = []
    for n in steps:
        for noise in max_noise:
            generator = torch.Generator(x.device).manual_seed(VALIDATION_SEED)
            start = time.perf_counter()
            setting = Setting(sampler, n, noise)
            output = restore(model, x, setting, generator)
            synchronize(x.device)
            seconds = (time.perf_counter() - start) / count
            scores = measure(output, y0, metrics)
            cells.append(
                {
                    "steps": n,
                    "max_noise": noise,
                    "alpha_bar_T": float(setting.schedule().alpha_bar[-1]),
                    "seconds": round(seconds, 5),
                }
                | {m: round(sum(v) / count, 4) for m, v in scores.items()}
            )
            progress(f"steps {n}, max_noise {noise}: " + ", ".join(f"{m} {cells[-1][m]}" for m in metrics))
    return cells


def best_cell(cells: list[dict], metric: str = "psnr") -> dict:
    """The grid's best cell by a metric."""
    better = max if HIGHER_IS_BETTER[metric] else min
    return better(cells, key=lambda cell: cell[metric])


def choose_cell(cells: list[dict], slack: float = 0.5) -> dict:
    """The setting to freeze: the most faithful spectrum among the cells within `slack` dB of the best PSNR.

    The best PSNR alone would always choose one step, which is regression under another name: a compromise between
    distortion and perception has to be stated, and this is ours.
    """
    floor = best_cell(cells, "psnr")["psnr"] - slack
    return best_cell([cell for cell in cells if cell["psnr"] >= floor], "spectral")


@dataclass
class HeldOut:
    """Crops that are in no test set, (n, 3, s, s) in [-1, 1]: pairs of one size."""

    y0: Tensor
    x: Tensor
    name: str

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return self.y0[index], self.x[index]


def choose_setting(
    row: Row,
    pairs: HeldOut,
    choice: str,
    ledger: Ledger,
    steps: Sequence[int],
    max_noise: Sequence[float],
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[Setting, list[dict]]:
    """(the setting to freeze, the grid's cells). Cells that are in the ledger are not computed again.

    choice: a metric, or "compromise" (`choose_cell`).
    Raises: ValueError if the metric cannot be computed, or no cell can be sampled.
    """
    assert row.model is not None
    n, _, _, size = pairs.x.shape
    metrics = tuple(dict.fromkeys(("psnr", "spectral" if choice == "compromise" else choice)))
    for name, reason in available(metrics, size)[1].items():
        raise ValueError(f"the setting cannot be chosen by {name}: {reason}")
    pictures = hashlib.sha256(torch.stack([pairs.y0, pairs.x]).cpu().numpy().tobytes()).hexdigest()
    cells = []
    for t, noise in product(steps, max_noise):
        try:
            setting = replace(row.setting, steps=t, max_noise=noise, samples=1)
        except ValueError as error:  # 500 steps up to 0.5: so much noise cannot be undone
            progress(f"steps {t}, max_noise {noise}: left out, {error}")
            continue
        key = {"grid": pictures} | replace(row, setting=setting).key()
        if not set(metrics) <= set(ledger.get(key)):
            one = (t,), (noise,), setting.sampler
            (cell,) = grid_search(row.model, pairs, n, size, *one, metrics=metrics, progress=progress)
            ledger.add(key, {name: value for name, value in cell.items() if name != "seconds"})
        cells.append(ledger.get(key))
    if not cells:
        raise ValueError("no cell of the grid can be sampled: fewer steps or less noise are needed")
    best = choose_cell(cells) if choice == "compromise" else best_cell(cells, choice)
    return replace(row.setting, steps=best["steps"], max_noise=best["max_noise"]), cells

"""The sampler's setting for the paper's evaluation: a grid search on held-out crops, resumable by cell."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluate import available, best_cell, choose_cell, grid_search
from ..sample import Setting
from .protocol import Ledger, Row

# DvSR (Whang 2022), supplement Sec. 6; the paper searches a grid too, which one is not known
GRID_STEPS = (10, 20, 30, 50, 100, 200, 300, 500)
GRID_MAX_NOISE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


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
    steps: tuple[int, ...] = GRID_STEPS,
    max_noise: tuple[float, ...] = GRID_MAX_NOISE,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[Setting, list[dict]]:
    """(the setting to freeze, the grid's cells). Cells that are in the ledger are not computed again.

    choice: a metric, or "compromise" (`evaluate.choose_cell`).
    Raises: ValueError if the metric cannot be computed, or no cell can be sampled.
    """
    if row.model is None:
        raise ValueError(f"{row.label} has no sampler whose setting could be chosen")
    n, _, _, size = pairs.x.shape
    metrics = tuple(dict.fromkeys(("psnr", "spectral" if choice == "compromise" else choice)))
    for name, reason in available(metrics)[1].items():
        raise ValueError(f"the setting cannot be chosen by {name}: {reason}")
    pictures = hashlib.sha256(torch.stack([pairs.y0, pairs.x]).cpu().numpy().tobytes()).hexdigest()
    cells = []
    for t in steps:
        for noise in max_noise:
            try:
                setting = replace(row.setting, steps=t, max_noise=noise, samples=1)
            except ValueError as error:  # 500 steps up to 0.5: so much noise cannot be undone
                progress(f"steps {t}, max_noise {noise}: left out, {error}")
                continue
            key = {"grid": pictures} | replace(row, setting=setting).key()
            if not set(metrics) <= set(ledger.get(key)):
                (cell,) = grid_search(
                    row.model, pairs, n, size, (t,), (noise,), setting.sampler, metrics=metrics, progress=progress
                )
                ledger.add(key, {name: value for name, value in cell.items() if name != "seconds"})
            cells.append(ledger.get(key))
    if not cells:
        raise ValueError("no cell of the grid can be sampled: fewer steps or less noise are needed")
    best = choose_cell(cells) if choice == "compromise" else best_cell(cells, choice)
    return replace(row.setting, steps=best["steps"], max_noise=best["max_noise"]), cells

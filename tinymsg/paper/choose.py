"""The sampler's setting for the paper's evaluation: a grid search on held-out crops, resumable by cell."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ..evaluate import available, best_cell, choose_cell, grid_search
from ..sample import Setting
from .protocol import Ledger, Row


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

    choice: a metric, or "compromise" (`evaluate.choose_cell`).
    Raises: ValueError if the metric cannot be computed, or no cell can be sampled.
    """
    assert row.model is not None
    n, _, _, size = pairs.x.shape
    metrics = tuple(dict.fromkeys(("psnr", "spectral" if choice == "compromise" else choice)))
    for name, reason in available(metrics)[1].items():
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

"""The sampler's setting for the paper's evaluation: a grid search on pictures that are in no test set, resumable by cell."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..data import ImageError, Pair, read_image, to_model
from ..evaluate import best_cell, choose_cell, grid_search, lpips_distance
from ..sample import Setting
from ..schedule import make_schedule
from .ledger import Ledger, digest
from .protocol import Entry

# DvSR (Whang 2022), supplement Sec. 6; the paper searches a grid too, which one is not known
GRID_STEPS = (10, 20, 30, 50, 100, 200, 300, 500)
GRID_MAX_NOISE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
CHOICES = ("compromise", "psnr", "ssim", "lpips", "spectral")  # by what the grid's best is chosen


class Centres:
    """The middle of each picture, as pairs for the grid search.

    Args:
        pairs: (sharp, blurry) paths by name.
        held_out: which part of the training data they are from, as a training that holds it out records it.
    """

    def __init__(self, pairs: list[Pair], name: str, device: torch.device | str = "cpu", held_out: str = ""):
        self.pairs, self.name, self.device, self.held_out = pairs, name, device, held_out

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 3, size, size) in [-1, 1]. Raises: ImageError for a smaller picture."""
        sides = ([], [])
        for i in index.tolist():
            for side, path in zip(sides, (self.pairs[i].sharp_paths[0], self.pairs[i].blurry), strict=True):
                image = read_image(path)
                h, w = image.shape[1:]
                if min(h, w) < size:
                    raise ImageError(f"{path}: {w}x{h} is smaller than the {size} pixels of the grid search's crops")
                top, left = (h - size) // 2, (w - size) // 2
                side.append(to_model(image[:, top : top + size, left : left + size]))
        return tuple(torch.stack(side).to(self.device) for side in sides)


def doubt(record: dict | None, pairs: Centres) -> str | None:
    """None if a training did not see the grid's pictures, as far as its record says; else a sentence.

    record: run.json of the training, or the card of shipped weights; None: there is none.
    """
    if record is None:
        return "there is no run.json beside the weights: whether their training saw the grid's pictures is not known"
    source = record.get("source") or {}
    if "held_out" in source:
        same = source["held_out"] == pairs.held_out
        return (
            None
            if same
            else f"their training held out {source['held_out']}, and the grid's pictures are of {pairs.held_out}"
        )
    if "blur" in source or not source:  # only of real pairs is a blur recorded: synthetic ones are not GoPro's
        return "their training recorded no held-out pictures: if it was on GoPro without --validate-every, it saw the grid's pictures"
    return None


def choose_setting(
    entry: Entry,
    pairs: Centres,
    size: int,
    choice: str,
    ledger: Ledger,
    steps: tuple[int, ...] = GRID_STEPS,
    max_noise: tuple[float, ...] = GRID_MAX_NOISE,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[Setting, list[dict]]:
    """(the setting to freeze, the grid's cells). Cells that are in the ledger are not computed again.

    Args:
        size: pixels of the crops, in the middle of the pictures.
        choice: of CHOICES; "compromise" is `evaluate.choose_cell`.
    """
    if choice not in CHOICES:
        raise ValueError(f"unknown choice {choice!r}; known: {', '.join(CHOICES)}")
    metrics = tuple(dict.fromkeys(("psnr", "spectral") if choice == "compromise" else ("psnr", choice)))
    if choice == "lpips":
        lpips_distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))  # raises where it is not to be had
    names = [pair.name for pair in pairs.pairs]
    cells = []
    for n in steps:
        for noise in max_noise:
            key = {
                "grid": pairs.name,
                "images": digest(names),
                "size": size,
                "weights": entry.weights,
                "steps": n,
                "max_noise": noise,
                "sampler": entry.setting.sampler,
                "precision": entry.model.config.precision,
                **entry.noise_key,
            }
            try:
                make_schedule("linear", n, noise)
            except ValueError as error:  # 500 steps up to 0.5: so much noise cannot be undone
                progress(f"steps {n}, max_noise {noise}: left out, {error}")
                continue
            if not set(metrics) <= set(ledger.get(key)):
                sampler = entry.setting.sampler
                (cell,) = grid_search(entry.model, pairs, len(names), size, (n,), (noise,), sampler, metrics=metrics)
                ledger.add(key, cell)
                progress(f"steps {n}, max_noise {noise}: " + ", ".join(f"{m} {cell[m]}" for m in metrics))
            cells.append({k: v for k, v in ledger.get(key).items() if k != "seconds"})
    if not cells:
        raise ValueError("no cell of the grid can be sampled: fewer steps or less noise are needed")
    best = choose_cell(cells) if choice == "compromise" else best_cell(cells, choice)
    return replace(entry.setting, steps=best["steps"], max_noise=best["max_noise"]), cells

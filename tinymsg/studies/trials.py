"""The toy's studies: which training runs one is made of, and how a run is carried out and scored."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

import torch
from torch import Tensor

from ..blur import path_to_kernel, walk_path
from ..evaluate import summary
from ..model import Recipe, count_parameters
from ..rng import Draws
from ..train import Record, TrainState
from . import toy
from .signals import SignalPairs, two_bump_kernel

# --- the map's kernels and domains --------------------------------------------------------------------------

SHORT, LONG = (5.0, 13.0), (15.0, 21.0)  # extent of the training family's kernels, and of longer ones, in samples
UNSEEN = torch.arange(100_000, 100_064)  # kernels of the family that no training sees
BREADTHS = (1, 4, 32, 1000)  # training kernels; a larger set holds the smaller ones


def family_kernels(index: Tensor, family: int, extent: tuple[float, float] = SHORT) -> Tensor:
    """Kernels number `index`, int64 (m,), of a family of one-dimensional camera shakes: how long the hand stayed where.

    Args:
        family: seed; each training seed of the map has a family of its own.
        extent: (low, high) samples from end to end, drawn uniformly.
    Returns: (m, k), k odd, non-negative, each summing to 1.
    """
    draws = Draws(0x66616D00 + family, index)
    length = draws.uniform(low=extent[0], high=extent[1])
    path = walk_path(draws, length, 33)
    path[..., 1] = 0
    reach = path[..., 0].amax(dim=1) - path[..., 0].amin(dim=1)
    path = path * (length / reach.clamp_min(1e-6))[:, None, None]
    size = 2 * int(extent[1] + 1) + 1
    return path_to_kernel(path, size)[:, size // 2]


def breadth_domains(kernels: int, family: int, seed: int) -> dict[str, SignalPairs]:
    """The map's test domains for a training on the first `kernels` of a family: the training domain, then others."""
    seen = family_kernels(torch.arange(kernels), family)
    return {
        "seen kernels": SignalPairs(seen, 1000, seed),
        "unseen kernels": SignalPairs(family_kernels(UNSEEN, family), 1000, seed),
        "longer kernels": SignalPairs(family_kernels(UNSEEN, family, LONG), 1000, seed),
        "two bumps": SignalPairs(two_bump_kernel(), 1000, seed),
        "noise": SignalPairs(seen, 1000, seed, noise=0.02),
        "photo rows": SignalPairs(seen, 1000, seed, photos=True),
    }


# --- one training -------------------------------------------------------------------------------------------

KEY = ("arm", "seed", "kernels", "steps")  # entries of a run that distinguish it from the others of its study


@dataclass(frozen=True)
class Trial:
    """One training run of a study; kernels: how many the map trains on (None: the toy's own training domain)."""

    arm: str
    seed: int
    recipe: Recipe
    kernels: int | None = None

    @property
    def key(self) -> tuple:
        """Its values of KEY."""
        return self.arm, self.seed, self.kernels, self.recipe.training.steps

    def run(self, count: int) -> dict:
        """Its entry of the results file: trained, and scored on `count` signals per domain.

        With the blurry input's scores, which differ between the map's runs.
        """
        entry = dict(zip(KEY, self.key, strict=True))
        state, records = toy.train_arm(self.recipe, self.training_pairs())
        entry |= _train(state, records) | {"scores": {}, "blurry": {}}
        for name, pairs in self.domains(toy.TEST_SEED).items():
            values = toy.per_signal(state.ema_model, pairs, count, samples=toy.SETTING.samples)
            entry["scores"][name] = {metric: summary(v.tolist()) for metric, v in values.items()}
            entry["scores"][name]["per_signal"] = [round(value, 2) for value in values["psnr"].tolist()]
            entry["blurry"][name] = summary(toy.per_signal(None, pairs, count)["psnr"].tolist())
        return entry

    def domains(self, seed: int) -> dict[str, SignalPairs]:
        """Its test domains; the first is the training domain."""
        if self.kernels is None:
            return {name: make(seed) for name, make in toy.DOMAINS_1D.items()}
        return breadth_domains(self.kernels, self.seed, seed)

    def training_pairs(self) -> SignalPairs:
        """The signals it learns from: content_count of them, blurred by the kernels of its first domain."""
        kernels = next(iter(self.domains(0).values())).kernels
        return SignalPairs(kernels, self.recipe.training.content_count, seed=0)


def _train(state: TrainState, records: Iterator[Record]) -> dict:
    """Train to the end. Returns: size, and the two loss curves of 40 points."""
    every = max(1, state.training.steps // 40)
    history = [record.to_dict() for record in records if record.step % every == 0]
    return {
        "parameters": count_parameters(state.model),
        "loss": [round(row["denoise"], 5) for row in history],
        "guidance_loss": [round(row["guidance"], 5) for row in history],
    }


# --- the studies --------------------------------------------------------------------------------------------

# Of the map. x0 instead of eps: of 32 kernels, eps has learnt so little in the budget that a map would show speed
# alone (seen kernels, 800 steps: plain +1 dB over blurry, where regression has +7)
FORMS: dict[str, dict] = {arm: toy.ARMS[arm] for arm in ("regression", "plain", "guided", "structure, stop-gradient")}


@dataclass(frozen=True)
class Study:
    """A study's arms, each trained once for each seed and, in the map, for each number of kernels."""

    arms: dict[str, dict]  # changes to base
    seeds: int  # training runs of each arm
    base: Recipe = toy.TOY
    kernels: tuple[int | None, ...] = (None,)
    count: int = 64  # test signals per domain

    def trials(self, seeds: int, steps: int) -> list[Trial]:
        """In the order in which they are run."""
        return [
            Trial(arm, seed, toy.variant(changes, steps, seed, self.base), kernels)
            for seed in range(seeds)
            for kernels in self.kernels
            for arm, changes in self.arms.items()
        ]


STUDIES: dict[str, Study] = {
    # What the guidance is made of, trained on one kernel (lesson 03)
    "forms": Study(toy.ARMS, 5),
    # The map: how many kernels must the training have seen for which form of guidance to help?
    "breadth": Study(FORMS, 3, toy.TOY.change(predict="x0"), BREADTHS),
}


def run_study(trials: list[Trial], workers: int, count: int = 64) -> Iterator[dict]:
    """Run trials in `workers` processes of one thread each, and yield their entries as they finish; 1: in this process.

    Small layers gain little from a second thread: two processes did 1.75 times the work of one with two threads.
    """
    if workers == 1:
        yield from (trial.run(count) for trial in trials)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker) as pool:
        try:
            for future in as_completed([pool.submit(trial.run, count) for trial in trials]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
    """One thread; and a watcher, or the workers of a study that was killed would train on, and then wait for ever."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


def sign_flip_p(values: Tensor) -> float:
    """Exact two-sided p-value of the mean of a few paired differences, (n,), 1 <= n <= 16, e.g. one per training run.

    Were the two equals, any sign might be the other one: the share of the 2^n ways to choose the signs whose mean is at
    least as far from zero (Fisher 1935).
    """
    if values.ndim != 1 or not 1 <= len(values) <= 16:
        raise ValueError(f"values must have shape (n,), n from 1 to 16, got {tuple(values.shape)}")
    ways = torch.arange(2 ** len(values))[:, None] >> torch.arange(len(values)) & 1
    sums = ((1 - 2 * ways) * values.cpu().double()).sum(dim=1).abs()
    slack = 1e-9 * values.cpu().double().abs().sum()  # ways that are equally far out must not differ by rounding
    return float((sums >= sums[0] - slack).double().mean())  # the first way: as observed

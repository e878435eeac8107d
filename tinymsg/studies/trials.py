"""Studies: which trainings one is made of, how a training is run and scored, how results are compared.

Of the one-dimensional toy:

    forms     what the guidance is made of, trained on one kernel (lessons 02 to 04)
    choices   what the network predicts, weight of the guidance loss, single scales, number of signals
    budget    the same arms trained 400 to 3,200 steps: is the order one of speed?
    breadth   the map: how many kernels must the training have seen for which form of guidance to help?

Of pictures:

    pictures  the headline: plain, guided, guided without its loss, regression; every test domain; twice the steps too
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor

from ..blur import path_to_kernel, walk_path
from ..data import Batches
from ..evaluate import nested_interval, sample_and_mean, summary
from ..machine import begin_worker
from ..model import Model, Recipe, count_parameters
from ..rng import Draws
from ..sample import Setting
from ..train import TrainState, fit
from . import pictures, toy
from .signals import SignalPairs, two_bump_kernel

# --- the map's kernels and domains ----------------------------------------------------------------------------

SHORT, LONG = (5.0, 13.0), (15.0, 21.0)  # extent of the training family's kernels, and of longer ones, in samples
UNSEEN_FIRST, UNSEEN_COUNT = 100_000, 64  # kernels of the family that no training sees
BREADTHS = (1, 4, 8, 32, 1000)  # training kernels; a larger set holds the smaller ones


def family_kernels(index: Tensor, family: int, extent: tuple[float, float] = SHORT) -> Tensor:
    """Kernels number `index` of a family of one-dimensional camera shakes: how long the hand stayed where.

    Args:
        index: int64 (m,), any values.
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
    unseen = torch.arange(UNSEEN_FIRST, UNSEEN_FIRST + UNSEEN_COUNT)
    return {
        "seen kernels": SignalPairs(seen, 1000, seed),
        "unseen kernels": SignalPairs(family_kernels(unseen, family), 1000, seed),
        "longer kernels": SignalPairs(family_kernels(unseen, family, LONG), 1000, seed),
        "two bumps": SignalPairs(two_bump_kernel(), 1000, seed),
        "noise": SignalPairs(seen, 1000, seed, noise=0.02),
        "photo rows": SignalPairs(seen, 1000, seed, content="photos"),
    }


_STRUCTURE = {"inject": "structure", "how": "both", "stop_gradient": True}
FORMS: dict[str, dict] = {  # of the map; changes to toy.TOY
    "regression": toy.ARMS["regression"],
    "plain": toy.ARMS["plain"],
    "guided": toy.ARMS["guided"],
    "guided, no loss": toy.ARMS["guided, no loss"],
    "coarse scales": {"scales": (2, 3)},
    "structure": _STRUCTURE,
}

# --- studies ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One training of a study. `kernels`: how many the map trains on; None: the toy's own training domain."""

    arm: str
    seed: int
    recipe: Recipe
    kernels: int | None = None

    @property
    def key(self) -> tuple:
        """What tells it from the other trials of its study."""
        return self.arm, self.seed, self.kernels, self.recipe.training.steps

    def run(self, count: int) -> dict:
        """Train and score it on `count` signals a domain: its entry of the results file, with the blurry input's scores."""
        state = TrainState(self.recipe)
        curves = _train(state, Batches(self.training_pairs(), self.recipe.training.batch, toy.LENGTH))
        domains = self.domains(toy.TEST_SEED)
        return (
            self.identity(state.model)
            | curves
            | {
                "scores": {name: score_signals(state.ema_model, pairs, count) for name, pairs in domains.items()},
                "blurry": {name: score_signals(None, pairs, count)["psnr"] for name, pairs in domains.items()},
            }
        )

    def identity(self, model: Model) -> dict:
        """What the results file says of any trial."""
        return {
            "arm": self.arm,
            "seed": self.seed,
            "kernels": self.kernels,
            "steps": self.recipe.training.steps,
            "parameters": count_parameters(model),
        }

    def domains(self, seed: int) -> dict[str, SignalPairs]:
        """Test domains; the first is the training domain."""
        if self.kernels is None:
            return {name: make(seed) for name, make in toy.DOMAINS_1D.items()}
        return breadth_domains(self.kernels, self.seed, seed)

    def training_pairs(self) -> SignalPairs:
        """What it learns from: content_count signals, the first kernels of its domain."""
        kernels = next(iter(self.domains(0).values())).kernels
        return SignalPairs(kernels, self.recipe.training.content_count, seed=0)


class PictureTrial(Trial):
    """One training on pictures; the arm "blurry" is the input itself."""

    def run(self, count: int) -> dict:
        """Train and score it on `count` pictures a domain, with its validation score along the way."""
        if self.arm == "blurry":
            return {
                "arm": self.arm,
                "seed": self.seed,
                "kernels": None,
                "steps": self.recipe.training.steps,
                "scores": self._scores(None, count),
            }
        state = TrainState(self.recipe)
        curve = []

        def watch(step: int) -> None:
            if step % max(1, self.recipe.training.steps // 8) == 0:
                curve.append([step, round(pictures.validation_psnr(state.ema_model, self.recipe), 3)])

        curves = _train(state, pictures.training_batches(self.recipe), watch)
        return (
            self.identity(state.model) | curves | {"validation": curve, "scores": self._scores(state.ema_model, count)}
        )

    def _scores(self, model: Model | None, count: int) -> dict:
        return {d: pictures.score_pictures(model, d, self.recipe.training.content, count) for d in pictures.DOMAINS}


def _train(state: TrainState, batches: Batches, watch: Callable[[int], None] = lambda step: None) -> dict:
    """Drain `fit`; calls watch(step) after each step. Returns: the two loss curves, 40 points each."""
    every = max(1, state.training.steps // 40)
    history = []
    for record in fit(state, batches):
        if record.step % every == 0:
            history.append(record.to_dict())
        watch(record.step)
    return {
        "loss": [round(row["denoise"], 5) for row in history],
        "guidance_loss": [round(row["guidance"], 5) for row in history],
    }


def _trial(arm: str, changes: dict, seed: int, steps: int, kernels: int | None = None) -> Trial:
    return Trial(arm, seed, toy.variant(changes, steps, seed), kernels)


def _forms(seeds: int, steps: int) -> Iterator[Trial]:
    for seed in range(seeds):
        for arm, changes in toy.ARMS.items():
            yield _trial(arm, changes, seed, steps)


_CHOICES: dict[str, dict] = {
    "eps": {},  # the paper's, of the signal itself
    "x0": {"predict": "x0"},
    "v": {"predict": "v"},
    "eps, residual": {"residual": True},
    "x0, residual": {"predict": "x0", "residual": True},
    "v, residual": {"predict": "v", "residual": True},
    "50 signals": {"content_count": 50},
    "500 signals": {"content_count": 500},
    "5000 signals": {"content_count": 5000},
}
_GUIDED_CHOICES: dict[str, dict] = {
    "loss weight 0.1": {"guidance_weight": 0.1},
    "loss weight 10": {"guidance_weight": 10.0},
    "scales 2": {"scales": (2,)},
}


def _choices(seeds: int, steps: int) -> Iterator[Trial]:
    for seed in range(seeds):
        for choice, changes in _CHOICES.items():
            for arm in ("plain", "guided"):
                yield _trial(f"{arm}, {choice}", toy.ARMS[arm] | changes, seed, steps)
        for choice, changes in _GUIDED_CHOICES.items():
            yield _trial(f"guided, {choice}", changes, seed, steps)


def _budget(seeds: int, steps: int) -> Iterator[Trial]:
    for seed in range(seeds):
        for share in (0.5, 1, 2, 4):
            for arm in ("plain", "guided", "guided, no loss"):
                yield _trial(arm, toy.ARMS[arm], seed, round(share * steps))


def _breadth(seeds: int, steps: int) -> Iterator[Trial]:
    # x0 instead of eps: of 32 kernels, eps has learnt so little in the budget that a map would show speed alone
    # (seen kernels, 800 steps: plain +1 dB over blurry, where regression has +7)
    for seed in range(seeds):
        for kernels in BREADTHS:
            for arm, changes in FORMS.items():
                yield _trial(arm, {"predict": "x0"} | changes, seed, steps, kernels)


def _pictures(seeds: int, steps: int) -> Iterator[Trial]:
    yield _picture_trial("blurry", {}, 0, steps)
    for seed in range(seeds):
        for arm, changes in pictures.ARMS.items():
            yield _picture_trial(arm, changes, seed, steps)
    for arm in ("plain", "guided"):  # would more training change the order?
        yield _picture_trial(arm, pictures.ARMS[arm], 0, 2 * steps)


def _picture_trial(arm: str, changes: dict, seed: int, steps: int) -> PictureTrial:
    return PictureTrial(arm, seed, toy.variant(changes, steps, seed, pictures.PICTURES))


@dataclass(frozen=True)
class Study:
    """A study's trials, (seeds, steps) -> in the order in which they are run, and its usual size."""

    trials: Callable[[int, int], Iterator[Trial]]
    seeds: int
    steps: int
    count: int  # test signals or pictures a domain


STUDIES: dict[str, Study] = {
    "forms": Study(_forms, 5, toy.TOY.training.steps, 64),
    "choices": Study(_choices, 2, toy.TOY.training.steps, 64),
    "budget": Study(_budget, 2, toy.TOY.training.steps, 64),
    "breadth": Study(_breadth, 2, toy.TOY.training.steps, 64),
    "pictures": Study(_pictures, 3, pictures.PICTURES.training.steps, 200),
}


def get_study(name: str) -> Study:
    """A registered study."""
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; known: {', '.join(STUDIES)}")
    return STUDIES[name]


# --- running one ----------------------------------------------------------------------------------------------


def score_signals(model: Model | None, pairs: SignalPairs, count: int, setting: Setting = toy.SETTING) -> dict:
    """Scores of one model on one domain; None: the blurry input.

    Returns: {"psnr", "psnr_mean", "invented_edges": {mean, low, high}, "per_signal": count values of psnr}; psnr
    is of one sample, psnr_mean of the mean of setting.samples. All models meet the same signals and noise.
    """
    y0, x = pairs.crops(torch.arange(count), toy.LENGTH)
    one = mean = x
    if model is not None:
        one, mean = sample_and_mean(model, x, setting, torch.Generator().manual_seed(toy.TEST_SEED))
    values = toy.signal_psnr(one, y0).tolist()
    return {
        "psnr": summary(values),
        "psnr_mean": summary(toy.signal_psnr(mean, y0).tolist()),
        "invented_edges": summary(toy.invented_edges(one, y0).tolist()),
        "per_signal": [round(value, 2) for value in values],
    }


def run_study(trials: list[Trial], workers: int, count: int = 64) -> Iterator[dict]:
    """Run trials in `workers` processes of one thread each, and yield their entries as they finish; 1: in this process.

    Small layers gain little from a second thread: two processes did 1.75 times the work of one with two threads.
    """
    if workers == 1:
        yield from (trial.run(count) for trial in trials)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), begin_worker) as pool:
        try:
            for future in as_completed([pool.submit(trial.run, count) for trial in trials]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def paired_differences(
    runs: list[dict],
    arm: str,
    other: str,
    domain: str,
    kernels: int | None = None,
    metric: str | None = None,
    steps: int | None = None,
) -> Tensor:
    """(seeds, signals or pictures) of a score, `arm` minus `other`, for the seeds that have both.

    Args:
        other: an arm; of pictures also "blurry", the same for all seeds.
        metric: of a study of pictures, "psnr", "psnr_mean", "spectral", ...; the toy's is PSNR.
        steps: of the trainings that are compared; None: whatever there is, one budget a study.
    """
    values = {}
    for run in runs:
        if run["kernels"] == kernels and (steps is None or run["steps"] == steps or run["arm"] == "blurry"):
            scores = run["scores"][domain]
            values[run["arm"], run["seed"]] = scores["per_signal"] if metric is None else scores["per_image"][metric]
    seeds = sorted(seed for name, seed in values if name == arm)
    if other == "blurry":
        values |= {(other, seed): values[other, 0] for seed in seeds}
    seeds = [seed for seed in seeds if (other, seed) in values]
    return torch.tensor([[a - b for a, b in zip(values[arm, s], values[other, s], strict=True)] for s in seeds])


def headline_table(results: dict, metric: str = "psnr") -> str:
    """The study of pictures as Markdown: mean score of each arm, then guided minus plain and minus its control.

    Intervals (95 %) cover trainings and pictures. Only trainings of the study's own number of steps count.
    """
    runs = [run for run in results["runs"] if run["steps"] == results["steps"]]
    arms = ["blurry", *pictures.ARMS]
    lines = [
        "| domain | " + " | ".join(arms) + " | guided - plain | guided - guided, no loss |",
        "|---" * (len(arms) + 3) + "|",
    ]
    digits = 2 if metric.startswith("psnr") else 3
    for domain in pictures.DOMAINS:
        mean = lambda arm, domain=domain: torch.tensor(
            [r["scores"][domain][metric]["mean"] for r in runs if r["arm"] == arm]
        ).mean()
        cells = [f"{float(mean(arm)):.{digits}f}" for arm in arms]
        for other in ("plain", "guided, no loss"):
            difference = paired_differences(runs, "guided", other, domain, metric=metric)
            low, high = nested_interval(difference)
            cells.append(f"{float(difference.mean()):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
        lines.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

"""The one-dimensional toy: the whole method on signals of 128 samples, trained to near convergence in a minute.

Every class is the library's own (ModelConfig.dims = 1: images of height 1). What is here are the toy's test domains,
the arms that are compared, and its one extra measure: edges that the model invented.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from ..data import Batches
from ..evaluate import measure, sample_and_mean
from ..model import Model, Recipe, plain_twin
from ..sample import Setting
from ..train import Record, TrainState, fit
from .signals import SignalPairs, box_kernels, gauss_kernel, two_bump_kernel

LENGTH = 128  # samples per signal
TEST_SEED = 7_001  # of the test signals: no run, choice or earlier look has used them
TOY = Recipe().change(
    dims=1,
    channels=1,
    widths=(16, 32, 48, 64),
    crop=LENGTH,
    batch=64,
    steps=800,
    predict="eps",
    residual=False,
    loss="l2",
    lr=3e-3,
    warmup=50,
    ema=0.99,
    guidance_width=16,
    guidance_blocks=2,
    content="signals",
    domain="box_9",
    content_count=1000,
)
SETTING = Setting("ancestral", steps=12, max_noise=0.5, samples=4)

# Trained on box 9 alone; each other domain changes the kernel or adds noise
DOMAINS_1D: dict[str, Callable[[int], SignalPairs]] = {
    "box_9": lambda seed: SignalPairs(box_kernels(9), 1000, seed),
    "box_5_7_11": lambda seed: SignalPairs(box_kernels(5, 7, 11), 1000, seed),
    "noise": lambda seed: SignalPairs(box_kernels(9), 1000, seed, noise=0.02),
    "gauss": lambda seed: SignalPairs(gauss_kernel(2.6), 1000, seed),
    "two_bump": lambda seed: SignalPairs(two_bump_kernel(), 1000, seed),
    "box_15": lambda seed: SignalPairs(box_kernels(15), 1000, seed),
}

# Changes to TOY. "plain" and "regression" are widened to as many parameters
ARMS: dict[str, dict] = {
    "regression": {"scales": (), "kind": "regression", "predict": "x0"},
    "plain": {"scales": ()},
    "guided": {},  # Ren 2023's form: features added to the encoder, trained jointly
    "guided, no loss": {"target": "none"},  # the control: the branch without its regression loss
    "features, stop-gradient": {"stop_gradient": True},
    "structure, stop-gradient": {"inject": "structure", "how": "both", "stop_gradient": True},
    "structure, no loss": {"inject": "structure", "how": "both", "target": "none"},
}


_twin = cache(plain_twin)  # of a study's every training the same


def variant(changes: dict, steps: int | None = None, seed: int = 0, base: Recipe = TOY) -> Recipe:
    """`base` with changes; without guidance, the network is widened to as many parameters as the guided base has."""
    recipe = base.change(steps=steps or base.training.steps, seed=seed).change(**changes)
    if not recipe.network.scales:
        recipe = recipe.change(widths=_twin(base.network).widths)
    return recipe


def arm_recipe(arm: str, steps: int | None = None, seed: int = 0, base: Recipe = TOY) -> Recipe:
    """The recipe of an arm of the toy."""
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; known: {', '.join(ARMS)}")
    return variant(ARMS[arm], steps, seed, base)


def train_arm(recipe: Recipe, pairs: SignalPairs | None = None) -> tuple[TrainState, Iterator[Record]]:
    """(state, its running `fit`): drain the second, then use state.ema_model."""
    state = TrainState(recipe)
    pairs = pairs or DOMAINS_1D[recipe.training.domain](0)
    return state, fit(state, Batches(pairs, recipe.training.batch, LENGTH))


def invented_edges(estimate: Tensor, truth: Tensor) -> Tensor:
    """Edges in the estimate where the truth has none, per signal: (n, 1, 1, w) in [-1, 1] -> (n,).

    An edge is a change of more than 0.3 over 3 samples; it is invented if the truth changes by less than 0.15 over 3
    samples anywhere within 4 samples. Neighbouring samples count as one edge.
    """
    jump, true_jump = ((signal[:, 0, 0, 3:] - signal[:, 0, 0, :-3]).abs() for signal in (estimate, truth))
    nearby = torch.nn.functional.max_pool1d(true_jump[:, None], 9, stride=1, padding=4)[:, 0]
    invented = (jump > 0.3) & (nearby < 0.15)
    starts = invented[:, 1:] & ~invented[:, :-1]
    return starts.sum(dim=1).float() + invented[:, 0].float()


def per_signal(
    model: Model | None, domain: str | SignalPairs, count: int = 64, seed: int = TEST_SEED, samples: int = 1
) -> dict[str, Tensor]:
    """Scores of a model on `count` signals of a domain, (count,) each; None: of the blurry input.

    The same signals and the same noise for every model: differences between models are paired.
    Args:
        seed: of the noise, and of the signals of a domain that is given by its name.
    Returns: {"psnr" in dB and "invented_edges" of one sample, "psnr_mean" of the mean of so many samples}.
    """
    pairs = DOMAINS_1D[domain](seed) if isinstance(domain, str) else domain
    y0, x = pairs.crops(torch.arange(count), LENGTH)
    one = mean = x
    if model is not None:
        setting = dataclasses.replace(SETTING, samples=samples)
        one, mean = sample_and_mean(model, x, setting, torch.Generator().manual_seed(seed))
    found = {"psnr": one, "psnr_mean": mean}
    # At most 60 dB, which exact signals would exceed
    scores = {name: torch.tensor(measure(v, y0, ("psnr",))["psnr"]).clamp(max=60.0) for name, v in found.items()}
    return scores | {"invented_edges": invented_edges(one, y0)}

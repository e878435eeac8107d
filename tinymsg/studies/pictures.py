"""The three arms on pictures: small networks that learn the training domain in minutes, scored on every domain, beside
regression and the blurry input, with equal data, steps, seeds and parameters."""

from dataclasses import replace

import torch

from ..data import TEST_DOMAINS, Batches, Pairs, SyntheticPairs, make_contents
from ..evaluate import TEST_SEED, VALIDATION_SEED, domain_pairs, evaluate, measure
from ..model import Model, Recipe
from ..sample import Setting, restore

PICTURES = Recipe().change(
    widths=(16, 32, 64, 64), guidance_width=24, crop=32, batch=16, steps=3000, lr=1e-3, warmup=100, ema=0.995
)
# Chosen on the validation split of the training domain for the shipped scene weights, see results/scores.json; frozen
SETTING = Setting("ancestral", steps=5, max_noise=0.99, samples=4)
DOMAINS = ("gopro_like", *TEST_DOMAINS)  # the first is the training domain
SIZE = 64  # pixels of a test picture
METRICS = ("psnr", "spectral")
VALIDATION_COUNT = 48

# Changes to PICTURES. Those without guidance are widened to as many parameters
ARMS: dict[str, dict] = {
    "regression": {"scales": (), "kind": "regression"},
    "plain": {"scales": ()},
    "guided": {},
    "guided, no loss": {"target": "none"},
}


def training_batches(recipe: Recipe) -> Batches:
    """What a recipe learns from: its contents, blurred anew for every crop; the order is the seed's."""
    c = recipe.training
    contents = make_contents(c.content, c.content_count, seed=0)
    return Batches(SyntheticPairs(contents, c.domain, c.seed), c.batch, c.crop)


def validation_psnr(model: Model, recipe: Recipe) -> float:
    """Mean PSNR in dB of one sample on held-out pairs of the training domain, the same for every arm and seed."""
    pairs = domain_pairs(recipe.training.domain, recipe.training.content, VALIDATION_COUNT, VALIDATION_SEED)
    y0, x = pairs.crops(torch.arange(VALIDATION_COUNT), SIZE)
    one = restore(model, x, replace(SETTING, samples=1), torch.Generator().manual_seed(VALIDATION_SEED))
    return sum(measure(one, y0, ("psnr",))["psnr"]) / VALIDATION_COUNT


def score_pictures(model: Model | None, domain: str, content: str, count: int) -> dict:
    """Scores of one model on one domain; None: the blurry input. All models meet the same pictures and noise.

    Returns: {"psnr", "psnr_mean", "spectral", "spectral_mean": {mean, low, high}, "per_image": {metric: count values}};
        plain names are of one sample, "_mean" of the mean of SETTING.samples.
    """
    pairs: dict[str, Pairs] = {domain: domain_pairs(domain, content, count, TEST_SEED)}
    found = evaluate({"model": model} if model else {}, pairs, SETTING, count, SIZE, METRICS, batch=50)["domains"][
        domain
    ]
    one = "model" if model else "blurry"
    mean = f"{one}-mean" if f"{one}-mean" in found["scores"] else one
    rows = [(metric + suffix, row, metric) for suffix, row in (("", one), ("_mean", mean)) for metric in METRICS]
    per_image = {name: found["per_image"][row][metric] for name, row, metric in rows}
    return {name: found["scores"][row][metric] for name, row, metric in rows} | {"per_image": per_image}

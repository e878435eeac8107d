"""The three arms on pictures: small networks that learn the training domain in minutes, scored on every domain.

The toy's questions, asked of pictures: plain, guided, and guided without its loss, beside regression and the blurry
input, with equal data, steps, seeds and parameters.
"""

import torch

from .data import TEST_DOMAINS, Batches, SyntheticPairs, make_contents
from .evaluate import TEST_SEED, VALIDATION_SEED, Setting, domain_pairs, measure, summary
from .model import Config, Model

PICTURES = Config(
    widths=(16, 32, 64, 64),
    guidance_width=24,
    guidance_blocks=3,
    crop=32,
    batch=16,
    steps=3000,
    lr=1e-3,
    warmup=100,
    ema=0.995,
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
_STRUCTURE = {"inject": "structure", "how": "both", "stop_gradient": True}
PARTS: dict[str, dict] = {
    "scales 1": {"scales": (1,)},
    "scales 1-2": {"scales": (1, 2)},
    "target rgb": {"target": "rgb"},
    "features, stop-gradient": {"stop_gradient": True},
    "structure, stop-gradient": _STRUCTURE,
    "structure, input coarse": _STRUCTURE | {"withhold": 0.5, "withhold_as": "coarse"},
    "loss weight 10": {"guidance_weight": 10.0},
    "double width": {"guidance_width": 48},
    "eps, residual": {"predict": "eps"},
    "v, residual": {"predict": "v"},
    "x0, direct": {"residual": False},
    "eps, direct": {"predict": "eps", "residual": False},
    "50 scenes": {"content_count": 50},
    "500 scenes": {"content_count": 500},
    "plain, 50 scenes": {"scales": (), "content_count": 50},
    "plain, 500 scenes": {"scales": (), "content_count": 500},
}


def training_batches(config: Config) -> Batches:
    """What a configuration learns from: its contents, blurred anew for every crop; the order is the seed's."""
    contents = make_contents(config.content, config.content_count, seed=0)
    return Batches(SyntheticPairs(contents, config.domain, config.seed), config.batch, config.crop)


def validation_psnr(model: Model, config: Config, setting: Setting = SETTING) -> float:
    """Mean PSNR in dB of one sample on held-out pairs of the training domain, the same for every arm and seed."""
    pairs = domain_pairs(config.domain, config.content, VALIDATION_COUNT, VALIDATION_SEED)
    y0, x = pairs.crops(torch.arange(VALIDATION_COUNT), SIZE)
    one, _ = Setting(setting.sampler, setting.steps, setting.max_noise, 1).restore(
        model, x, _generator(VALIDATION_SEED)
    )
    return sum(measure(one, y0, ("psnr",))["psnr"]) / VALIDATION_COUNT


def score_pictures(model: Model | None, domain: str, content: str, count: int, setting: Setting = SETTING) -> dict:
    """Scores of one model on one domain; None: the blurry input. All models meet the same pictures and noise.

    Returns: {"psnr", "psnr_mean", "spectral", "spectral_mean": {mean, low, high}, "per_image": {metric: count values}};
        plain names are of one sample, "_mean" of the mean of setting.samples.
    """
    pairs = domain_pairs(domain, content, count, TEST_SEED)
    values: dict[str, list[float]] = {}
    for index in torch.arange(count).split(50):
        y0, x = pairs.crops(index, SIZE)
        one = mean = x
        if model is not None:
            one, mean = setting.restore(model, x, _generator(TEST_SEED + int(index[0])))
        for suffix, output in (("", one), ("_mean", mean)):
            for metric, scores in measure(output, y0, METRICS).items():
                values.setdefault(metric + suffix, []).extend(scores)
    return {name: summary(v) for name, v in values.items()} | {
        "per_image": {name: [round(score, 3) for score in v] for name, v in values.items()}
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

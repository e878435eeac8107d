"""Profiles: sizes and budgets of a training. A profile changes numbers, never a code path."""

from ..model import Recipe

PROFILES: dict[str, dict] = {
    "cpu": {},
    "gpu": {
        "widths": (64, 128, 192, 256),
        "blocks": 2,
        "crop": 96,  # of scenes of 128 pixels: with the light that blur brings in from outside, they hold no more
        "batch": 96,
        "steps": 60_000,
        "lr": 4e-4,
        "compile": "default",
    },
    # For photographs as people have them: what `deblur` takes by default, trained in parts, each begun with --start
    "everyday": {
        "fold": 2,
        "widths": (64, 128, 160),
        "domain": "everyday",
        "crop": 96,
        "batch": 8,
        "steps": 20_000,
        "lr": 8e-4,
    },
    # Full GoPro training. The defaults' guidance is the paper's (Ren 2023, Figs. 3 and 12). Its loss norm, batch, rate,
    # EMA and number of steps were not to be had, nor those of DvSR (Whang 2022): they are ours, most after SR3 (Saharia
    # 2021) and WaveGrad (Chen 2021), untested at this length
    "full": {
        "widths": (32, 64, 96, 128),  # DvSR, Fig. 10: c, 2c, 3c, 4c; c = 32 as said of its denoiser
        "blocks": 3,  # 6.2 M parameters, DvSR's denoiser has about 7 M
        "guidance_width": 64,
        "predict": "eps",
        "residual": False,  # Ren 2023, Fig. 2: eps, of the sharp image itself
        "content": "gopro",  # Ren 2023
        "crop": 128,
        "batch": 256,  # fits a card of 80 GB; `train --estimate --profile full` says what to do on others
        "steps": 1_000_000,  # SR3's, and its rate and warm-up; the cosine after it is ours
        "lr": 1e-4,
        "warmup": 10_000,
        "ema": 0.9999,  # Ho 2020
        "compile": "default",
    },
}


def profile(name: str) -> Recipe:
    """The recipe of a profile."""
    return Recipe().change(**PROFILES[name])

"""Profiles: sizes and budgets of a training. A profile changes numbers, never a code path."""

from ..model import Recipe

PROFILES: dict[str, dict] = {
    "cpu": {},
    "gpu": {
        "widths": (64, 128, 192, 256),
        "blocks": 2,
        "crop": 128,
        "batch": 64,
        "steps": 60_000,
        "lr": 4e-4,
        "compile": "default",
    },
    # Full GoPro training. Behind each value its source, or "ours" for our choice. The texts of Ren 2023 and of DvSR
    # (Whang 2022) gave us no loss norm, batch, rate, EMA or number of steps: those are ours, untested at this length
    "full": {
        "widths": (32, 64, 96, 128),  # DvSR, Fig. 10: c, 2c, 3c, 4c; c = 32 as said of its denoiser
        "blocks": 3,  # ours: 6.2 M parameters, DvSR's denoiser has about 7 M
        "predict": "eps",
        "residual": False,  # Ren 2023, Fig. 2: eps, of the sharp image itself
        "scales": (1, 2, 3),  # three by a published summary of Ren 2023; its own text was not seen
        "target": "gray",
        "inject": "features",
        "how": "add",
        "stop_gradient": False,  # Ren 2023, Figs. 3 and 12
        "guidance_width": 64,
        "guidance_blocks": 3,
        "guidance_weight": 1.0,  # ours
        "noise_steps": 2000,
        "noise_max": 0.01,  # levels: SR3, WaveGrad; values: ours
        "content": "gopro",  # Ren 2023; the pictures themselves come with --data gopro
        "crop": 128,  # ours
        "batch": 256,
        "steps": 1_000_000,  # ours, after SR3 (Saharia 2021): 256 M crops
        "accumulate": 1,  # for an 80 GB card; `train --estimate --profile full` says what fits others
        "loss": "l1",  # ours, after WaveGrad (Chen 2021)
        "lr": 1e-4,
        "warmup": 10_000,
        "weight_decay": 0.0,  # ours: SR3's rate and warm-up; the cosine after it is ours
        "ema": 0.9999,  # ours, after Ho 2020
        "clip": 1.0,
        "clip_guidance": 1.0,  # ours
        "precision": "auto",
        "compile": "default",  # ours: speed alone
    },
}


def profile(name: str) -> Recipe:
    """The recipe of a profile."""
    return Recipe().change(**PROFILES[name])

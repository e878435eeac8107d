"""The reverse process: from noise to an image, in as many steps as one likes.

A sampler is a generator `(eps_fn, schedule, y_T, generator)` that yields `(t, y_t, y0_hat)` for t = T-1 .. 0; the
last y_t is the sample. It knows nothing of blur, guidance or what the network predicts: `eps_fn(y_t, noise_level)`
with noise_level (b,) returns eps_hat.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Model
from .schedule import Schedule, make_schedule, q_sample
from .train import use_bf16

EpsFn = Callable[[Tensor, Tensor], Tensor]
Steps = Iterator[tuple[int, Tensor, Tensor]]


def _predict(eps_fn: EpsFn, schedule: Schedule, t: int, y_t: Tensor) -> tuple[Tensor, Tensor]:
    """(eps_hat, y0_hat) at step t; y0_hat solves y_t = a y0 + s eps for y0 (Ho 2020, eq. 15)."""
    alpha_bar = float(schedule.alpha_bar[t])
    noise_level = torch.full((len(y_t),), math.sqrt(alpha_bar), device=y_t.device)
    eps_hat = eps_fn(y_t, noise_level)
    return eps_hat, (y_t - math.sqrt(1 - alpha_bar) * eps_hat) / math.sqrt(alpha_bar)


def ancestral(eps_fn: EpsFn, schedule: Schedule, y_T: Tensor, generator: torch.Generator | None = None) -> Steps:
    """DDPM: draw each y_{t-1} from the posterior with y0_hat in the place of y0 (Ho 2020, Alg. 2)."""
    y = y_T
    for t in range(schedule.T, 0, -1):
        _, y0_hat = _predict(eps_fn, schedule, t, y)
        y, variance = schedule.posterior(t, y, y0_hat)
        if variance > 0:  # zero at t = 1, since alpha_bar[0] = 1
            y = y + math.sqrt(variance) * _noise(y, generator)
        yield t - 1, y, y0_hat


def ddim(
    eps_fn: EpsFn, schedule: Schedule, y_T: Tensor, generator: torch.Generator | None = None, eta: float = 0.0
) -> Steps:
    """DDIM (Song 2021, eq. 12): eta = 0 is deterministic, eta = 1 is `ancestral`."""
    y = y_T
    for t in range(schedule.T, 0, -1):
        eps_hat, y0_hat = _predict(eps_fn, schedule, t, y)
        ab, ab_before = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[t - 1])
        variance = eta**2 * (1 - ab_before) / (1 - ab) * (1 - ab / ab_before)  # Song 2021, eq. 16
        y = math.sqrt(ab_before) * y0_hat + math.sqrt(max(1 - ab_before - variance, 0.0)) * eps_hat
        if variance > 0:
            y = y + math.sqrt(variance) * _noise(y, generator)
        yield t - 1, y, y0_hat


def dpm_solver(eps_fn: EpsFn, schedule: Schedule, y_T: Tensor, generator: torch.Generator | None = None) -> Steps:
    """DPM-Solver++(2M): second order from the last two predictions (Lu 2022, DPM-Solver++, Alg. 2). Deterministic.

    The first step has no past, and the last ends at zero noise where lambda is infinite: both are first order.
    """
    y, before = y_T, None  # before: (y0_hat, lambda) of the step before
    for t in range(schedule.T, 0, -1):
        _, y0_hat = _predict(eps_fn, schedule, t, y)
        a, s, lambda_t = _log_snr(schedule, t)
        a_next, s_next, lambda_next = _log_snr(schedule, t - 1)
        direction = y0_hat
        if before is not None and s_next > 0:
            r = (lambda_t - before[1]) / (lambda_next - lambda_t)
            direction = (1 + 1 / (2 * r)) * y0_hat - 1 / (2 * r) * before[0]
        y = s_next / s * y + (a_next - s_next * a / s) * direction  # eq. 9 with e^-h written as a ratio
        before = (y0_hat, lambda_t)
        yield t - 1, y, y0_hat


def _log_snr(schedule: Schedule, t: int) -> tuple[float, float, float]:
    """(alpha, sigma, lambda = log(alpha / sigma)) in Lu 2022's notation; lambda is infinite at t = 0."""
    alpha_bar = float(schedule.alpha_bar[t])
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return a, s, math.log(a / s) if s > 0 else math.inf


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


SAMPLERS: dict[str, Callable[..., Steps]] = {"ancestral": ancestral, "ddim": ddim, "dpm_solver": dpm_solver}


def get_sampler(name: str) -> Callable[..., Steps]:
    """A registered sampler."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def pad_to_multiple(x: Tensor, multiple: int, dims: int = 2) -> Tensor:
    """Mirror the right and lower border out to a multiple; tiny images repeat their last pixel instead."""
    h, w = x.shape[-2:]
    right, below = -w % multiple, (-h % multiple if dims == 2 else 0)
    if right == below == 0:
        return x
    mode = "reflect" if right < w and below < h else "replicate"
    return F.pad(x, (0, right, 0, below), mode=mode)


def check_images(x: Tensor, channels: int) -> None:
    """Raise ValueError unless x is float (b, channels, h, w), finite, in [-1, 1]."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (b, {channels}, h, w), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x is empty: {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point in [-1, 1], got {x.dtype}; divide by 127.5 and subtract 1")
    if not torch.isfinite(x).all():
        raise ValueError("x holds values that are not finite")
    low, high = float(x.min()), float(x.max())
    if low < -1.001 or high > 1.001:
        raise ValueError(f"x must lie in [-1, 1], got {low:.3g} .. {high:.3g}; display values need 2 * x - 1")


@dataclass(frozen=True)
class Prepared:
    """What depends on the blurry picture alone, computed once for all steps and samples."""

    padded: Tensor  # (b, c, h', w'), sides multiples of model.multiple
    eps_fn: EpsFn
    bf16: bool


def prepare(model: Model, x: Tensor) -> Prepared:
    """Check x (b, c, h, w) in [-1, 1], pad it, and run the guidance net."""
    check_images(x, model.config.channels)
    padded = pad_to_multiple(x.float(), model.multiple, model.config.dims).contiguous(memory_format=torch.channels_last)
    bf16 = use_bf16(model.config.precision, x.device)
    with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        return Prepared(padded, model.denoiser(padded), bf16)


def restore_steps(
    model: Model,
    x: Tensor,
    sampler: str = "ancestral",
    steps: int = 10,
    max_noise: float = 0.5,
    schedule: str = "linear",
    generator: torch.Generator | None = None,
    prepared: Prepared | None = None,
    start: Tensor | None = None,
) -> Steps:
    """The steps of one restoration: yields (t, z_t, y0_hat), both (b, c, h, w); y0_hat is an image in [-1, 1].

    z_t is what is diffused: the noisy image, or the noisy residual. Arguments as for `restore`; `prepared` saves
    repeating `prepare(model, x)`.
    """
    run = get_sampler(sampler)
    if start is not None and start.shape != x.shape:
        raise ValueError(f"start must be an estimate of x's shape {tuple(x.shape)}, got {tuple(start.shape)}")
    if start is not None and model.config.kind == "regression":
        raise ValueError("a regression model begins nowhere: start is for diffusion models")
    plan = make_schedule(schedule, 1 if model.config.kind == "regression" else steps, max_noise)
    prepared = prepared or prepare(model, x)
    h, w = x.shape[-2:]
    noise = torch.randn(prepared.padded.shape, generator=generator, device=x.device)
    if start is not None:
        z = model.encode(pad_to_multiple(start.float(), model.multiple, model.config.dims), prepared.padded)
        noise = q_sample(z, plan.noise_level[-1:].float().expand(len(x)), noise)
    chain = run(prepared.eps_fn, plan, noise, generator)
    while True:
        # Entered anew for each step: a context held open across a yield would leak into the caller
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=prepared.bf16):
            step = next(chain, None)
            if step is None:
                return
            t, z_t, z0_hat = step
            y0_hat = model.decode(z0_hat, prepared.padded)
        yield t, z_t[..., :h, :w], y0_hat[..., :h, :w]


def restore(
    model: Model,
    x: Tensor,
    sampler: str = "ancestral",
    steps: int = 10,
    max_noise: float = 0.5,
    schedule: str = "linear",
    samples: int = 1,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
    start: Tensor | None = None,
    prepared: Prepared | None = None,
) -> Tensor:
    """Deblur: draw y0 ~ p(y0 | x), or the mean of several draws.

    Args:
        model: from `build_model`, `load_model` or `pretrained`.
        x: (b, c, h, w) blurry, in [-1, 1], any size; runs on its device.
        sampler: a name in SAMPLERS.
        steps: network evaluations a sample, at least 1. A regression model always takes one.
        max_noise: largest beta_t, in (0, 1). Few steps need a large one: unless alpha_bar_T is below about 0.15,
            the chain starts from more noise than the network is told.
        samples: draws to average (the paper's "-SA"): fewer artefacts and higher PSNR, smoother.
        generator: for repeatable draws, on x's device.
        progress: called as progress(done, total) after every network evaluation.
        start: (b, c, h, w) in [-1, 1], an estimate of y0 to begin from instead of pure noise: it is noised up to the
            schedule's end (CCDF, Chung 2022, "Come-Closer-Diffuse-Faster", Alg. 1). Choose max_noise so that
            alpha_bar_T is not near 0 (`schedule.max_noise_for`).
        prepared: of `prepare(model, x)`, to save repeating it.
    Returns: (b, c, h, w) float32 in [-1, 1].
    Raises: ValueError on unknown names, wrong shapes, ranges or values that are not finite.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if model.config.kind == "regression":
        steps = samples = 1
    prepared = prepared or prepare(model, x)
    total = torch.zeros_like(x, dtype=torch.float32)
    done = 0
    for _ in range(samples):
        for _, _, y0_hat in restore_steps(model, x, sampler, steps, max_noise, schedule, generator, prepared, start):
            done += 1
            if progress is not None:
                progress(done, samples * steps)
        total += y0_hat  # the last step's y0_hat is the sample: alpha_bar[0] = 1 leaves no noise on it
    return total / samples

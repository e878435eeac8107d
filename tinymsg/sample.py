"""The reverse process: from noise to an image, in as many steps as one likes.

A sampler is a generator `(denoise, schedule, y_T, generator)` that yields `(t, y_t, y0_hat)` for t = T-1 .. 0; the
last y_t is the sample. It knows nothing of blur, guidance or what the network predicts: `denoise(y_t, noise_level)`
with noise_level (b,) returns y0_hat, and eps_hat follows from it: y_t = a y0_hat + s eps_hat (Ho 2020, eq. 15).
A chain can be entered at any step T; `before` is then the y0_hat of step T + 1, None where there is no past.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .data import check_images, pad_to_multiple
from .machine import use_bf16
from .model import Denoise, Model, pretrained
from .schedule import Image, Schedule, make_schedule, q_sample

Steps = Iterator[tuple[int, Tensor, Tensor]]  # (t, y_t, y0_hat) of each step
Rng = torch.Generator | None  # None: torch's own


def _denoise(denoise: Denoise, schedule: Schedule, t: int, y_t: Tensor) -> tuple[Tensor, float, float]:
    """(y0_hat, a, s) at step t, where y_t = a y0 + s eps."""
    alpha_bar = float(schedule.alpha_bar[t])
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return denoise(y_t, torch.full((len(y_t),), a, device=y_t.device)), a, s


def ancestral(denoise: Denoise, schedule: Schedule, y_T: Tensor, generator: Rng = None, T=None, before=None) -> Steps:
    """DDPM: draw each y_{t-1} from the posterior with y0_hat in the place of y0 (Ho 2020, Alg. 2)."""
    y = y_T
    for t in range(T or schedule.T, 0, -1):
        y0_hat, _, _ = _denoise(denoise, schedule, t, y)
        y, variance = schedule.posterior(t, y, y0_hat)
        if variance > 0:  # zero at t = 1, since alpha_bar[0] = 1
            y = y + math.sqrt(variance) * torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        yield t - 1, y, y0_hat


def ddim(
    denoise: Denoise, schedule: Schedule, y_T: Tensor, generator: Rng = None, eta: float = 0.0, T=None, before=None
) -> Steps:
    """DDIM (Song 2021, eq. 12): eta = 0 is deterministic, eta = 1 is `ancestral`."""
    y = y_T
    for t in range(T or schedule.T, 0, -1):
        y0_hat, a, s = _denoise(denoise, schedule, t, y)
        ab, ab_before = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[t - 1])
        variance = eta**2 * (1 - ab_before) / (1 - ab) * (1 - ab / ab_before)  # Song 2021, eq. 16
        eps_hat = (y - a * y0_hat) / s
        y = math.sqrt(ab_before) * y0_hat + math.sqrt(max(1 - ab_before - variance, 0.0)) * eps_hat
        if variance > 0:
            y = y + math.sqrt(variance) * torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        yield t - 1, y, y0_hat


def dpm_solver(denoise: Denoise, schedule: Schedule, y_T: Tensor, generator: Rng = None, T=None, before=None) -> Steps:
    """DPM-Solver++(2M): second order from the last two predictions (Lu 2022, DPM-Solver++, Alg. 2). Deterministic.

    The first step has no past, and the last ends at zero noise where lambda is infinite: both are first order.
    """
    y = y_T
    for t in range(T or schedule.T, 0, -1):
        y0_hat, a, s = _denoise(denoise, schedule, t, y)
        a_next, s_next = math.sqrt(schedule.alpha_bar[t - 1]), math.sqrt(1 - schedule.alpha_bar[t - 1])
        direction = y0_hat
        if before is not None and s_next > 0:
            # Two steps in lambda = log(a / s), half the logit of alpha_bar; only their ratio counts
            h, h_before = torch.logit(schedule.alpha_bar[t - 1 : t + 2]).diff().tolist()
            direction = y0_hat + h / (2 * h_before) * (y0_hat - before)
        y = s_next / s * y + (a_next - s_next * a / s) * direction  # eq. 9 with e^-h written as a ratio
        before = y0_hat
        yield t - 1, y, y0_hat


SAMPLERS: dict[str, Callable[..., Steps]] = {"ancestral": ancestral, "ddim": ddim, "dpm_solver": dpm_solver}


def get_sampler(name: str) -> Callable[..., Steps]:
    """A registered sampler."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


@dataclass(frozen=True)
class Setting:
    """How a picture is restored; what model cards, results files and the command line speak of."""

    sampler: str = "ancestral"  # a name in SAMPLERS
    steps: int = 5  # network evaluations per sample; a regression model always takes one
    max_noise: float = 0.9  # largest beta_t, in (0, 1); without a start few steps need a large one, alpha_bar_T < 0.15
    grid: str = "linear"  # a name in schedule.SCHEDULES
    samples: int = 1  # draws to average (the paper's "-SA"): fewer artefacts and higher PSNR, smoother
    start: str | None = None  # a regression's weights: its answer, noised, is where a chain begins (CCDF, Chung 2022)

    def __post_init__(self):
        get_sampler(self.sampler)
        self.schedule()
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def schedule(self) -> Schedule:
        """The levels that a chain walks through."""
        return make_schedule(self.grid, self.steps, self.max_noise)


class Prepared(NamedTuple):
    """What depends on the blurry picture alone, computed once for all steps and samples."""

    padded: Tensor  # (b, c, h', w'), sides multiples of model.multiple
    denoise: Denoise
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
    setting: Setting = Setting(),
    generator: torch.Generator | None = None,
    prepared: Prepared | None = None,
    start: Tensor | None = None,
) -> Steps:
    """The steps of one sample: yields (t, z_t, y0_hat), both (b, c, h, w); y0_hat is an image in [-1, 1].

    z_t is what is diffused: the noisy image, or the noisy residual. Arguments as for `restore`.
    """
    kind, start = model.config.kind, _beginning(model, x, setting, start)
    if start is not None and (kind == "regression" or start.shape != x.shape):
        raise ValueError(f"start is for diffusion, of x's shape {tuple(x.shape)}; got {kind}, {tuple(start.shape)}")
    schedule = make_schedule(setting.grid, 1 if kind == "regression" else setting.steps, setting.max_noise)
    prepared, (h, w) = prepared or prepare(model, x), x.shape[-2:]
    noise = torch.randn(prepared.padded.shape, generator=generator, device=x.device)
    if start is not None:
        z = model.encode(pad_to_multiple(start.float(), model.multiple, model.config.dims), prepared.padded)
        noise = q_sample(z, torch.full((len(x),), float(schedule.noise_level[-1]), device=x.device), noise)
    noise = noise.contiguous(memory_format=torch.channels_last)  # as x: a step takes a quarter less time on a CPU
    chain = get_sampler(setting.sampler)(prepared.denoise, schedule, noise, generator)
    for _ in range(schedule.T):
        # Entered anew for each step: a context held open across a yield would leak into the caller
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=prepared.bf16):
            t, z_t, z0_hat = next(chain)
            y0_hat = model.decode(z0_hat, prepared.padded)
        yield t, z_t[..., :h, :w], y0_hat[..., :h, :w]


def _beginning(model: Model, x: Tensor, setting: Setting, start: Tensor | None) -> Tensor | None:
    name = setting.start if start is None and model.config.kind == "diffusion" else None
    return restore(pretrained(name, x.device), x) if name else start


def draw_samples(
    model: Model,
    x: Tensor,
    setting: Setting = Setting(),
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    start: Tensor | None = None,
    prepared: Prepared | None = None,
) -> Iterator[Tensor]:
    """setting.samples draws of y0 ~ p(y0 | x), each (b, c, h, w); of a regression model one. Arguments as `restore`."""
    steps, samples = (1, 1) if model.config.kind == "regression" else (setting.steps, setting.samples)
    prepared, sample, start = prepared or prepare(model, x), x, _beginning(model, x, setting, start)
    for number in range(samples):
        for t, _, y0_hat in restore_steps(model, x, setting, generator, prepared, start):
            progress(number * steps + steps - t, samples * steps)
            sample = y0_hat
        yield sample  # alpha_bar[0] = 1 leaves no noise on it


def restore(model: Model, x: Tensor, setting: Setting = Setting(), generator=None, **options) -> Image:
    """Deblur: draw y0 ~ p(y0 | x), or the mean of several draws.

    Args:
        x: (b, c, h, w) blurry, in [-1, 1], any size; runs on its device.
        generator: for repeatable draws, on x's device.
        progress: called as progress(done, total) after every network evaluation.
        start: (b, c, h, w) in [-1, 1], an estimate of y0 to begin from; see `max_noise_for`. None: as the setting says.
        prepared: of `prepare(model, x)`, to save repeating it.
    Returns: float32 in [-1, 1]. Raises: ValueError on wrong shapes, ranges or values that are not finite.

    >>> restore(pretrained("scenes-guided"), torch.zeros(1, 3, 20, 30)).shape
    torch.Size([1, 3, 20, 30])
    """
    total, count = torch.zeros_like(x, dtype=torch.float32), 0
    for sample in draw_samples(model, x, setting, generator, **options):
        total, count = total + sample, count + 1
    return total / count

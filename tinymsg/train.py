"""Learning: one loss, the state of a training, one loop that yields numbers."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .guidance import structure_targets
from .machine import upload, use_bf16
from .model import Model, Recipe, build_model
from .schedule import Image, Level, linear, q_sample

DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}  # of the denoising loss


def loss_terms(
    model: Model, y0: Image, x: Image, noise_level: Level, eps: Image, loss: str = "l1", network: Callable | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(denoising loss, guidance loss) of L = L_denoise + lambda * sum_k mse(pred_k, target_k).

    (Ho 2020, eq. 14, in the form of Chen 2021 for continuous levels; Ren 2023 for the second term.)
    network: what is called instead of `model`: the same, compiled or shared among processes.
    """
    z0 = model.encode(y0, x)
    if model.config.kind == "regression":
        z_t, noise_level, wanted = torch.zeros_like(z0), torch.zeros_like(noise_level), z0
    else:
        z_t, wanted = q_sample(z0, noise_level, eps), model.target(z0, eps, noise_level)
    output, predictions = (model if network is None else network)(z_t, x, noise_level)
    structure = y0.new_zeros(())
    if predictions:
        targets = structure_targets(y0, model.guidance.scales, model.guidance.target)
        for prediction, target in zip(predictions, targets, strict=True):
            structure = structure + F.mse_loss(prediction.float(), target)
    return DISTANCES[loss](output.float(), wanted), structure


class NotFiniteError(RuntimeError):
    """The loss became infinite or NaN; no checkpoint was written since."""


@dataclass
class Record:
    """One optimiser step. The losses are 0-dim tensors on the device: reading one waits for the GPU."""

    step: int  # steps done so far
    denoise: Tensor
    guidance: Tensor
    grad_norm: Tensor  # of the denoiser, before clipping
    grad_norm_guidance: Tensor
    lr: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, for logs."""
        return {name: float(value) for name, value in vars(self).items()} | {"step": self.step}


class TrainState:
    """All that a run is made of: model, EMA, optimiser, step. Weights stay fp32.

    Attributes:
        data: what it learns from ({"name": ...}); travels with the checkpoints.
        share: (number of this process, how many there are); together they take one process's noise.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str = "cpu", model: Model | None = None):
        self.recipe, self.network, self.training = recipe, recipe.network, recipe.training
        self.device, self.step, self.data, self.share = torch.device(device), 0, {}, (0, 1)
        self.bf16 = use_bf16(self.network.precision, self.device)
        # In fp32 on a CPU the backward pass of large crops takes 0.84 of the time in the ordinary layout
        ordinary = self.device.type == "cpu" and not self.bf16 and self.network.dims == 2 and self.training.crop >= 96
        self.layout = torch.contiguous_format if ordinary else torch.channels_last
        self.model = (model or build_model(self.network, self.training.seed)).train()
        self.model.to(self.device).to(memory_format=self.layout)
        self.ema_model = copy.deepcopy(self.model).eval().requires_grad_(False)  # the weights to evaluate and to save
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), self.training.lr, (0.9, 0.99), weight_decay=self.training.weight_decay, fused=True
        )
        self.schedule = linear(self.training.noise_steps, self.training.noise_max, min_noise=1e-6)
        self._not_finite_since = torch.full((), -1, device=self.device)  # stays on the device: reading it waits

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        c, step = self.training, self.step
        if step < c.warmup:
            return c.lr * (step + 1) / c.warmup
        return c.lr * 0.5 * (1 + math.cos(math.pi * (step - c.warmup) / max(1, c.steps - c.warmup)))

    def noise(self, y0: Tensor) -> tuple[Tensor, Tensor]:
        """(noise levels, eps) of this process's share of a step: a function of (seed, step) alone.

        A resumed run draws what an uninterrupted one would have; of several processes each takes its part of it.
        """
        rank, processes = self.share
        whole = len(y0) * processes
        # The factor spreads neighbouring seeds; the CPU's generator reads no more than 32 bits
        seed = (self.training.seed * 0x9E3779B1 + (self.step << 8)) % 2**32
        generator = torch.Generator().manual_seed(seed)
        level = self.schedule.random_noise_level(whole, generator)
        if y0.device.type != "cpu":
            generator = torch.Generator(y0.device).manual_seed(seed)
        eps = torch.randn(whole, *y0.shape[1:], generator=generator, device=y0.device)
        return upload(level[rank::processes], y0.device), eps[rank::processes]

    @torch.no_grad()
    def average(self) -> None:
        """Take the weights as they are now into the running average; the first time they are the average."""
        decay = self.training.ema if self.step > 0 else 0.0
        torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - decay)

    def note_if_not_finite(self, value: Tensor) -> None:
        """Remember this step, on the device, if it is the first whose `value` (a scalar) is not finite."""
        first_bad = ~torch.isfinite(value) & (self._not_finite_since < 0)
        self._not_finite_since.masked_fill_(first_bad, self.step)

    def check_finite(self) -> None:
        """Raises NotFiniteError if a loss or gradient was not finite at any step. Waits for the GPU."""
        if (step := int(self._not_finite_since)) >= 0:
            raise NotFiniteError(
                f"the loss or its gradient is not finite at step {step}; no checkpoint was written since: "
                "lower lr or raise warmup, and go on from the last checkpoint"
            )


def fit(
    state: TrainState,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    steps: int | None = None,
    network: nn.Module | None = None,
) -> Iterator[Record]:
    """Train until `steps` (default: the recipe's); yields a Record after each optimiser step. Never plots or saves.

    Args:
        batches: step -> (y0, x), both (b, c, h, w) in [-1, 1] on the state's device: this process's share of the step's
            training.batch crops, b a multiple of training.accumulate.
        network: what is called instead of state.model: the same, compiled or shared among processes.
    Raises: NotFiniteError.
    """
    c, model, steps = state.training, state.model, state.training.steps if steps is None else steps
    while state.step < steps:
        y0, x = (image.contiguous(memory_format=state.layout) for image in batches(state.step))
        noise_level, eps = state.noise(y0)
        lr = state.learning_rate()
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(2, device=state.device)
        parts = zip(*(part.chunk(c.accumulate) for part in (y0, x, noise_level, eps)), strict=True)
        for number, part in enumerate(parts, start=1):
            # Several processes exchange their gradients once, with the last micro-batch
            wait = getattr(network, "no_sync", None) if number < c.accumulate else None
            with wait() if wait else contextlib.nullcontext():
                with torch.autocast(state.device.type, torch.bfloat16, enabled=state.bf16):
                    denoise, guidance = loss_terms(model, *part, c.loss, network)
                ((denoise + c.guidance_weight * guidance) / c.accumulate).backward()
            losses += torch.stack([denoise.detach(), guidance.detach()]) / c.accumulate
        # One shared clip would let the guidance's large gradients starve the denoiser: clip each on its own
        norm = nn.utils.clip_grad_norm_(model.unet.parameters(), c.clip).detach()
        norm_guidance = torch.zeros_like(norm)
        if state.network.scales:
            norm_guidance = nn.utils.clip_grad_norm_(model.guidance.parameters(), c.clip_guidance).detach()
        state.optimizer.step()
        state.average()
        state.step += 1
        state.note_if_not_finite(losses.sum() + norm + norm_guidance)
        # Looking at a value waits for the GPU: there only now and then, and always before the last record
        if state.device.type == "cpu" or state.step % 100 == 0 or state.step == steps:
            state.check_finite()
        yield Record(state.step, losses[0], losses[1], norm, norm_guidance, lr)

"""Learning: one loss, one loop that yields numbers, on one process or many."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from .guidance import structure_targets
from .model import Config, Model, build_model
from .processes import rank_and_processes
from .schedule import q_sample


def loss_terms(
    model: nn.Module,
    config: Config,
    y0: Tensor,
    x: Tensor,
    noise_level: Tensor,
    eps: Tensor,
    core: Model | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(denoising loss, guidance loss), two scalars: L = L_denoise + lambda * sum_k mse(pred_k, target_k).

    (Ho 2020, eq. 14, in the form of Chen 2021 for continuous levels; Ren 2023 for the second term.)

    Args:
        model: called as model(z_t, x, noise_level); `core` is the Model within, where it is wrapped.
        y0, x, eps: (b, c, h, w); noise_level: (b,).
        hidden: (b,) bool, pairs whose blurry image only the guidance sees; None: none of them.
    """
    core = core or model
    z0 = core.encode(y0, x)
    if config.kind == "regression":
        z_t, noise_level = torch.zeros_like(z0), torch.zeros_like(noise_level)
        wanted = z0
    else:
        z_t = q_sample(z0, noise_level, eps)
        wanted = core.target(z0, eps, noise_level)
    masks = () if hidden is None else (hidden,)  # a CUDA graph takes tensors only
    output, predictions = model(z_t, x, noise_level, *masks)
    distance = F.l1_loss if config.loss == "l1" else F.mse_loss
    denoise = distance(output.float(), wanted)
    structure = y0.new_zeros(())
    if predictions:
        targets = structure_targets(y0, core.guidance.scales, core.guidance.target)
        structure = sum(F.mse_loss(p.float(), t) for p, t in zip(predictions, targets, strict=True))
    return denoise, structure


@cache
def bf16_is_faster(device_type: str) -> bool:
    """Whether bf16 beats fp32 here: asked of the device, or measured where a CPU does not tell (50 ms, once)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    # A measurement can come out either way on a busy machine, and two processes would then give different pictures
    units = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if any(has_unit() for has_unit in units if has_unit is not None):
        return True
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Conv2d(64, 64, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
        image = torch.zeros(4, 64, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            layer(image)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                layer(image)
                times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def use_bf16(precision: str, device: torch.device) -> bool:
    """Resolve a Config's precision for a device.

    On a GPU "fp32" is what PyTorch makes of it: cuDNN's convolutions round their inputs to TF32 (10 bits of mantissa)
    unless torch.backends.cudnn.allow_tf32 is False.
    """
    return precision == "bf16" or (precision == "auto" and bf16_is_faster(device.type))


def training_layout(config: Config, device: torch.device, bf16: bool) -> torch.memory_format:
    """The memory layout in which a training step takes least time: channels_last, with one exception.

    In fp32 on a CPU the backward pass of a convolution of large crops is faster in the ordinary layout: a step then takes 0.84
    of the time at 128x128, as long at 64x64 and less, 1.3 times as long for signals. Sampling is faster in channels_last everywhere.
    """
    ordinary = device.type == "cpu" and not bf16 and config.dims == 2 and config.crop >= 96
    return torch.contiguous_format if ordinary else torch.channels_last


class CheckpointError(ValueError):
    """What was read is not a checkpoint of this program, or does not hold what it should."""


# May differ from the checkpoint's: the result is the same but for rounding
_FREE = ("accumulate", "compile", "cuda_graph")
# May differ where that is asked for (accept_changes): the network is the same, its training goes on otherwise
TUNABLE = (
    "steps",
    "batch",
    "lr",
    "warmup",
    "weight_decay",
    "ema",
    "clip",
    "clip_guidance",
    "guidance_weight",
    "precision",
)


class TrainState:
    """All that a run is made of: model, EMA, optimiser, step. Weights stay fp32.

    `data` says what it learns from ({"name": ...}); it travels with the checkpoints.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu", model: Model | None = None):
        self.config, self.device, self.step, self.data = config, torch.device(device), 0, {}
        self.model = (model or build_model(config)).to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.ema = AveragedModel(self.model, use_buffers=False)
        self.compute_in(use_bf16(config.precision, self.device))
        self.schedule = self.model.training_schedule().on(self.device)
        self._not_finite_since = torch.full((), -1, device=self.device)  # stays on the device: reading it waits

    def compute_in(self, bf16: bool) -> None:
        """Take this number type from here on, and the memory layout that goes with it.

        The fused optimiser walks through memory as it lies: weights and moments, which may come from a checkpoint, must lie alike.
        """
        self.bf16, self.layout = bf16, training_layout(self.config, self.device, bf16)
        for module in (self.model, self.ema.module):
            module.to(memory_format=self.layout)
        for weight, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(weight).copy_(moments[name])

    @property
    def ema_model(self) -> Model:
        """The averaged weights: the ones to evaluate and to save. Shares memory with the running average."""
        return self.ema.module.eval()

    @torch.no_grad()
    def average(self) -> None:
        """Take the weights as they are now into the running average; the first time they are the average.

        AveragedModel's own update moves its counter to the GPU at every step, and waits for that.
        """
        averages, parameters = list(self.ema.module.parameters()), list(self.model.parameters())
        decay = 0.0 if self.ema.n_averaged == 0 else self.config.ema  # counted on the CPU
        torch._foreach_lerp_(averages, parameters, 1 - decay)
        self.ema.n_averaged += 1

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        c, step = self.config, self.step
        if step < c.warmup:
            return c.lr * (step + 1) / c.warmup
        return c.lr * 0.5 * (1 + math.cos(math.pi * (step - c.warmup) / max(1, c.steps - c.warmup)))

    def note_if_finite(self, value: Tensor) -> None:
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

    def state_dict(self) -> dict:
        return {
            "config": json.dumps(self.config.to_dict()),
            "data": json.dumps(self.data),
            "step": self.step,
            "bf16": f"{self.device.type} {self.bf16}",
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict, accept_changes: bool = False) -> None:
        """Take over what `state_dict` gave; nothing is changed where that fails.

        Args:
            accept_changes: the settings in TUNABLE, and the data, may differ from the checkpoint's.
        Raises: CheckpointError if it is not one of ours; ValueError if it belongs to other settings or data.
        """
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise CheckpointError("it holds other things than a training's state")
        try:
            config, data, step = json.loads(state["config"]), json.loads(state["data"]), int(state["step"])
            kind, _, bf16 = state["bf16"].partition(" ")
            data.keys(), config.keys()
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"its settings cannot be read: {error}") from None
        saved = Config.from_dict(config).to_dict()
        self._refuse(
            [k for k, v in saved.items() if v != getattr(self.config, k) and k not in _FREE],
            "settings",
            TUNABLE if accept_changes else (),
        )
        known = data.keys() | self.data.keys() if data and self.data else ()  # one that says nothing is not asked
        different = sorted(k for k in known if data.get(k) != self.data.get(k))
        changes = [f"{k} is {self.data.get(k)!r} and was {data.get(k)!r}" for k in different]
        self._refuse(changes, "data", tuple(changes) if accept_changes else ())
        for name, module in (("model", self.model), ("ema", self.ema)):
            shapes = {k: v.shape for k, v in module.state_dict().items()}
            if shapes != {k: v.shape for k, v in state[name].items()}:
                raise CheckpointError(f"the weights of its {name} do not fit its settings")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"its optimiser's state cannot be used: {error}") from None
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.step = step
        measured = kind == self.device.type and self.config.precision == "auto"  # not certainly the same twice
        self.compute_in(bf16 == "True" if measured else self.bf16)

    @staticmethod
    def _refuse(different: list[str], what: str, allowed: tuple[str, ...]) -> None:
        if refused := [name for name in different if name not in allowed]:
            raise ValueError(
                f"the checkpoint was written with other {what}: {', '.join(refused)}; use the same, or another "
                "--out folder (--accept-changes allows other data or settings of the optimisation)"
            )


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


class NotFiniteError(RuntimeError):
    """The loss became infinite or NaN; no checkpoint was written since."""


def fit(
    model: TrainState | Config, batches: Callable[[int], tuple[Tensor, Tensor]], config: Config | None = None
) -> Iterator[Record]:
    """Train until config.steps; yields a Record after each optimiser step. Never plots, prints or saves.

    Args:
        model: a TrainState (resumed or new), or a Config to start from.
        batches: step -> (y0, x), both (b, c, h, w) in [-1, 1] on the model's device: this process's share of the
            step's config.batch crops, b a multiple of config.accumulate.
        config: only to run fewer steps than the state's own configuration says.
    Raises: NotFiniteError.
    """
    state = TrainState(model) if isinstance(model, Config) else model
    config = config or state.config
    core, device = state.model, state.device
    _, processes = rank_and_processes()
    network = _network(state, config)
    while state.step < config.steps:
        y0, x = (image.contiguous(memory_format=state.layout) for image in batches(state.step))
        noise_level, eps, hidden = _noise(state, y0)
        for group in state.optimizer.param_groups:
            group["lr"] = state.learning_rate()
        state.optimizer.zero_grad(set_to_none=True)
        losses = _gradients(state, config, network, y0, x, noise_level, eps, hidden=hidden)
        # One shared clip would let the guidance's large gradients starve the denoiser: clip each on its own
        norm = nn.utils.clip_grad_norm_(core.unet.parameters(), config.clip)
        norm_guidance = torch.zeros_like(norm)
        if config.scales:
            norm_guidance = nn.utils.clip_grad_norm_(core.guidance.parameters(), config.clip_guidance)
        state.optimizer.step()
        state.average()
        state.step += 1
        if processes > 1:
            torch.distributed.all_reduce(losses.div_(processes))
        state.note_if_finite(losses.sum() + norm.detach() + norm_guidance.detach())
        # Looking at a value waits for the GPU: there only now and then, and always before the last record
        if device.type == "cpu" or state.step % 100 == 0 or state.step == config.steps:
            state.check_finite()
        yield Record(
            state.step,
            losses[0],
            losses[1],
            norm.detach(),
            norm_guidance.detach(),
            state.optimizer.param_groups[0]["lr"],
        )


def _noise(state: TrainState, y0: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(noise levels, eps, which blurry images are withheld) of this process's share: a function of (seed, step) alone.

    A resumed run draws what an uninterrupted one would have. Several processes draw the noise of the whole batch
    and take their share: together they see one process's.
    """
    rank, processes = rank_and_processes()
    # The factor spreads neighbouring seeds; the CPU's generator reads no more than 32 bits
    generator = torch.Generator(y0.device).manual_seed((state.config.seed * 0x9E3779B1 + (state.step << 8)) % 2**32)
    whole = len(y0) * processes
    noise_level = state.schedule.random_noise_level(whole, generator)[rank::processes]
    eps = torch.randn(whole, *y0.shape[1:], generator=generator, device=y0.device)[rank::processes]
    hidden = None
    if state.config.withhold:
        hidden = torch.rand(whole, generator=generator, device=y0.device)[rank::processes] < state.config.withhold
    return noise_level, eps, hidden


def _gradients(state: TrainState, config: Config, network: nn.Module, *share: Tensor, hidden: Tensor | None) -> Tensor:
    """Add up the gradients of a process's share (y0, x, noise_level, eps; hidden), micro-batch by micro-batch.

    Returns: (denoising loss, guidance loss), shape (2,), means over the share. The processes exchange gradients once,
    with the last micro-batch.
    """
    n = config.accumulate
    losses = torch.zeros(2, device=state.device)
    share_of_denoising = 0.0 if state.step < config.head_start else 1.0  # zero: every parameter keeps its gradient
    masks = [None] * n if hidden is None else hidden.chunk(n)
    for i, (y0, x, noise_level, eps, mask) in enumerate(zip(*(part.chunk(n) for part in share), masks, strict=True)):
        waits = isinstance(network, nn.parallel.DistributedDataParallel) and i < n - 1
        with network.no_sync() if waits else contextlib.nullcontext(), _dropout_stream(state, i):
            # A recorded graph holds the casts of the weights: a cache of them would not be refilled
            with torch.autocast(
                state.device.type, torch.bfloat16, enabled=state.bf16, cache_enabled=not config.cuda_graph
            ):
                denoise, guidance = loss_terms(network, config, y0, x, noise_level, eps, state.model, mask)
            with _other_stream(config.cuda_graph):
                ((share_of_denoising * denoise + config.guidance_weight * guidance) / n).backward()
        if config.cuda_graph and i == 0 < n - 1:
            # A recorded pass returns its own buffers, which become the gradients, and the next one writes into them
            for p in state.model.parameters():
                p.grad = None if p.grad is None else p.grad.clone()
        losses += torch.stack([denoise.detach(), guidance.detach()]) / n
    return losses


@contextlib.contextmanager
def _other_stream(recorded: bool) -> Iterator[None]:
    """What was recorded belongs to the stream of the recording: autograd waits for that, rightly, and need not warn of it."""
    if not recorded:
        yield
        return
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    try:
        yield
    finally:
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(True)


@contextlib.contextmanager
def _dropout_stream(state: TrainState, micro_batch: int) -> Iterator[None]:
    """Dropout draws from torch's global stream: give it one of this (seed, step, process, micro-batch), and restore it."""
    if state.config.dropout == 0:
        yield
        return
    rank, processes = rank_and_processes()
    with torch.random.fork_rng(devices=[state.device] if state.device.type == "cuda" else []):
        place = (state.step * processes + rank) * state.config.accumulate + micro_batch
        torch.manual_seed((state.config.seed * 0x9E3779B1 + place * 0x85EBCA6B + 1) % 2**32)
        yield


def _network(state: TrainState, config: Config) -> nn.Module:
    """What is called in training: the model, compiled or recorded where the configuration says so, shared under torchrun."""
    if config.cuda_graph:
        return _graphed(state, config)
    model, device = state.model, state.device
    network = model
    if config.compile:
        # torch keeps 8 compiled forms of a function and refuses a ninth: they would be those of 8 earlier trainings here
        torch.compiler.reset()
        network = torch.compile(model, fullgraph=True, dynamic=False)  # a training has one shape
    if not torch.distributed.is_initialized():
        return network
    # static_graph counts the backward passes of a step: it does not go with no_sync
    return nn.parallel.DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=config.accumulate == 1,
    )


def _graphed(state: TrainState, config: Config) -> nn.Module:
    """The model with its forward and backward passes recorded once as CUDA graphs, and replayed.

    A step of the full network launches 1,444 kernels (counted by benchmarks/scale.py): for small batches that takes longer than
    to compute them. Shapes must stay the same.
    """
    if state.device.type != "cuda" or torch.distributed.is_initialized() or config.withhold or config.dropout:
        raise ValueError("cuda_graph needs one process on a GPU, without withhold and dropout; leave it False")
    height = config.crop if config.dims == 2 else 1
    image = torch.zeros(config.batch // config.accumulate, config.channels, height, config.crop, device=state.device)
    image = image.contiguous(memory_format=state.layout)
    inputs = image, image.clone(), image.new_full((len(image),), 0.5)
    vars(state.model).pop(
        "forward", None
    )  # of an earlier fit: the recording replaces it, and cannot itself be recorded
    with (
        torch.cuda.device(state.device),
        torch.autocast("cuda", torch.bfloat16, enabled=state.bf16, cache_enabled=False),
    ):
        # Unused: with target none and stop_gradient no gradient reaches the guidance
        return torch.cuda.make_graphed_callables(state.model, inputs, allow_unused_input=True)

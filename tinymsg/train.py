"""Learning: one loss, one loop that yields numbers, checkpoints that survive anything."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .data import Batches, PairedImages, SyntheticPairs, make_contents
from .guidance import structure_targets
from .model import Config, Model, build_model, save_model
from .results import provenance, write_results
from .schedule import q_sample


def loss_terms(model: nn.Module, config: Config, y0: Tensor, x: Tensor, noise_level: Tensor, eps: Tensor,
               core: Model | None = None, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
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
    output, predictions = model(z_t, x, noise_level, hidden)
    distance = F.l1_loss if config.loss == "l1" else F.mse_loss
    denoise = distance(output.float(), wanted)
    structure = y0.new_zeros(())
    if predictions:
        targets = structure_targets(y0, core.guidance.scales, core.guidance.target)
        structure = sum(F.mse_loss(p.float(), t) for p, t in zip(predictions, targets, strict=True))
    return denoise, structure


@cache
def bf16_is_faster(device_type: str) -> bool:
    """Whether bf16 beats fp32 here: asked of the GPU, measured on the CPU (a convolution, 50 ms, once)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
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
    """Resolve a Config's precision for a device."""
    return precision == "bf16" or (precision == "auto" and bf16_is_faster(device.type))


class TrainState:
    """All that a run is made of: model, EMA, optimiser, step. Weights stay fp32; layout channels_last."""

    def __init__(self, config: Config, device: torch.device | str = "cpu", model: Model | None = None):
        self.config, self.device, self.step = config, torch.device(device), 0
        self.model = (model or build_model(config)).to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay,
                                           betas=(0.9, 0.99), fused=True)  # fmt: skip
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
        self.bf16 = use_bf16(config.precision, self.device)

    @property
    def ema_model(self) -> Model:
        """The averaged weights: the ones to evaluate and to save. Shares memory with the running average."""
        return self.ema.module.eval()

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        c, step = self.config, self.step
        if step < c.warmup:
            return c.lr * (step + 1) / c.warmup
        return c.lr * 0.5 * (1 + math.cos(math.pi * (step - c.warmup) / max(1, c.steps - c.warmup)))

    def state_dict(self) -> dict:
        return {"config": json.dumps(self.config.to_dict()), "step": self.step, "model": self.model.state_dict(),
                "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()}  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the checkpoint belongs to another configuration."""
        saved = Config.from_dict(json.loads(state["config"]))
        different = [k for k, v in saved.to_dict().items() if v != getattr(self.config, k)]
        if different:
            raise ValueError(f"the checkpoint was written with other settings: {', '.join(different)}; "
                             "use the same, or another --out folder")  # fmt: skip
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


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


def fit(model: TrainState | Config, batches: Callable[[int], tuple[Tensor, Tensor]],
        config: Config | None = None) -> Iterator[Record]:  # fmt: skip
    """Train until config.steps; yields a Record after each optimiser step. Never plots, prints or saves.

    Args:
        model: a TrainState (resumed or new), or a Config to start from.
        batches: step -> (y0, x), both (b, c, h, w) in [-1, 1] on the model's device.
        config: only to run fewer steps than the state's own configuration says.
    Raises: NotFiniteError.
    """
    state = TrainState(model) if isinstance(model, Config) else model
    config = config or state.config
    core, device = state.model, state.device
    rank, processes = rank_and_processes()
    schedule = core.training_schedule()
    network = _distributed(core, device)
    forward = torch.compile(network, fullgraph=True) if config.compile else network
    while state.step < config.steps:
        # Noise is a function of (seed, step): a resumed run draws what an uninterrupted one would have
        # (the factor spreads neighbouring seeds; the CPU's generator reads no more than 32 bits)
        generator = torch.Generator(device).manual_seed((config.seed * 0x9E3779B1 + (state.step << 8)) % 2**32)
        y0, x = (image.contiguous(memory_format=torch.channels_last) for image in batches(state.step))
        # Several processes draw the noise of the whole batch and take their share: the sum is one process's
        noise_level = schedule.random_noise_level(len(y0) * processes, generator)[rank::processes]
        eps = torch.randn(len(y0) * processes, *y0.shape[1:], generator=generator, device=device)[rank::processes]
        hidden = None
        if config.withhold:
            hidden = (torch.rand(len(y0) * processes, generator=generator, device=device) < config.withhold)[rank::processes]
        for group in state.optimizer.param_groups:
            group["lr"] = state.learning_rate()
        with torch.autocast(device.type, torch.bfloat16, enabled=state.bf16):
            denoise, guidance = loss_terms(forward, config, y0, x, noise_level, eps, core, hidden)
        state.optimizer.zero_grad(set_to_none=True)
        alone = state.step < config.head_start  # times zero, not left out: every parameter keeps its gradient
        ((0.0 if alone else 1.0) * denoise + config.guidance_weight * guidance).backward()
        # One shared clip would let the guidance's large gradients starve the denoiser: clip each on its own
        norm = nn.utils.clip_grad_norm_(core.unet.parameters(), config.clip)
        norm_guidance = torch.zeros_like(norm)
        if config.scales:
            norm_guidance = nn.utils.clip_grad_norm_(core.guidance.parameters(), config.clip_guidance)
        state.optimizer.step()
        state.ema.update_parameters(core)
        state.step += 1
        # Looking at a value waits for the GPU: there only now and then, and always before the last record
        if device.type == "cpu" or state.step % 100 == 0 or state.step == config.steps:
            if not bool(torch.isfinite(denoise + guidance)):
                raise NotFiniteError(f"the loss is {denoise.item()} + {guidance.item()} at step {state.step}; "
                                     "lower lr or raise warmup, and resume from the last checkpoint")  # fmt: skip
        losses = torch.stack([denoise.detach(), guidance.detach()])
        if processes > 1:
            torch.distributed.all_reduce(losses.div_(processes))
        yield Record(state.step, losses[0], losses[1], norm.detach(), norm_guidance.detach(),
                     state.optimizer.param_groups[0]["lr"])  # fmt: skip


# --- several processes --------------------------------------------------------------------------------------


def rank_and_processes() -> tuple[int, int]:
    """(this process's number, how many there are); (0, 1) without torchrun."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def join_processes(device: torch.device) -> torch.device:
    """Under torchrun, join the other processes and return this one's own device; else `device` unchanged."""
    if "LOCAL_RANK" not in os.environ or torch.distributed.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave_processes() -> None:
    """Undo `join_processes`."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _distributed(model: Model, device: torch.device) -> nn.Module:
    """The model itself, or its DistributedDataParallel wrapper under torchrun."""
    if not torch.distributed.is_initialized():
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True)  # fmt: skip


# --- checkpoints --------------------------------------------------------------------------------------------

KEEP = 2  # checkpoints: should the newest be damaged, the one before it serves


def save_checkpoint(folder: str | Path, state: TrainState) -> Path:
    """Write checkpoint-STEP.pt: to a temporary file, synced, renamed; older ones than the last two are removed.

    A kill at any moment leaves the previous checkpoints intact.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{state.step:08d}.pt"
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        torch.save(state.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    for old in _checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"))


def resume(folder: str | Path, state: TrainState) -> tuple[Path | None, list[str]]:
    """Load the newest readable checkpoint of a folder into `state`.

    Returns: its path (None if there is none), and one sentence for each damaged one that was passed over.
    Raises: ValueError if the checkpoint belongs to another configuration.
    """
    damaged = []
    for path in reversed(_checkpoints(Path(folder))):
        try:
            saved = torch.load(path, map_location=state.device, weights_only=True)
        except Exception as error:  # whatever a torn file makes torch.load raise: the next older one is tried
            damaged.append(f"{path.name} is damaged ({type(error).__name__}) and was passed over")
            continue
        state.load_state_dict(saved)
        return path, damaged
    return None, damaged


# --- a whole run --------------------------------------------------------------------------------------------


def make_batches(config: Config, device: torch.device, folder: str | None = None) -> Batches:
    """The training data of a configuration: its synthetic domain, or the real pairs of a folder."""
    if folder is not None:
        pairs = PairedImages(folder, seed=config.seed, device=device)
    else:
        contents = make_contents(config.content, config.content_count, seed=0)
        pairs = SyntheticPairs(contents, config.domain, config.seed, device, gray=config.channels == 1)
    rank, processes = rank_and_processes()
    if config.batch % processes:
        raise ValueError(f"batch is the total over all processes: {config.batch} does not divide among {processes}")
    return Batches(pairs, config.batch, config.crop, rank, processes)


def run(state: TrainState, batches: Batches, out: Path, log_every: int = 100, save_every: int = 500) -> None:
    """Drain `fit`: progress bar, out/log.csv, checkpoints, and at the end out/weights.safetensors (the EMA).

    Of several processes, the first writes.
    """
    from tqdm import tqdm

    if rank_and_processes()[0] > 0:
        for _ in fit(state, batches):
            pass
        return
    out.mkdir(parents=True, exist_ok=True)
    write_results(out / "run.json", provenance() | {
        "data": batches.pairs.name, "seed": state.config.seed, "steps": state.config.steps,
        "images_seen": state.config.steps * state.config.batch, "device": state.device.type, "bf16": state.bf16,
        "config": state.config.to_dict()})  # fmt: skip
    log = out / "log.csv"
    rows = _rows_before(log, state.step)
    bar = tqdm(fit(state, batches), total=state.config.steps, initial=state.step, unit="step", mininterval=1)
    with open(log, "w") as file:
        file.writelines(rows)
        for record in bar:
            if record.step % log_every == 0 or record.step == state.config.steps:
                values = record.to_dict()
                if file.tell() == 0:
                    file.write(",".join(values) + "\n")
                file.write(",".join(f"{value:.6g}" for value in values.values()) + "\n")
                file.flush()
                bar.set_postfix(denoise=f"{values['denoise']:.4f}", guidance=f"{values['guidance']:.4f}")
            if record.step % save_every == 0 or record.step == state.config.steps:
                save_checkpoint(out, state)
    save_model(state.ema_model, out / "weights.safetensors")


def _rows_before(log: Path, step: int) -> list[str]:
    """Lines of an earlier log up to `step`: what came after the checkpoint will be written anew."""
    if not log.exists() or step == 0:
        return []
    header, *rows = log.read_text().splitlines(keepends=True)
    return [header, *(row for row in rows if row.endswith("\n") and int(float(row.split(",")[0])) <= step)]

"""Before a training starts: how much memory it takes, what fits which card, and how long it will be.

Memory is computed: autograd's saved tensors are counted in two forward passes of tensors without content, of one crop
and of two, with the number types that the device would use; weights, gradients, optimiser and EMA are counted from
their sizes. torch.compile recomputes part of what eager mode saves: compiled trainings take less than the figure.
"""

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..machine import out_of_memory, synchronize
from ..model import Model, Recipe, count_parameters
from ..train import TrainState, loss_terms

CARDS = (8, 16, 24, 80)  # GB
CONTEXT = 0.8e9  # bytes: CUDA itself, cuDNN's and cuBLAS's workspaces; our allowance, not measured
SPARE = 0.1  # share of a card that is left to the allocator's gaps; our allowance
_STATE_BYTES = 20  # a parameter, all fp32: weight, gradient, two moments of AdamW, EMA


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step takes: `fixed` + `micro` a crop of the micro-batch + `batch` a crop of the share."""

    fixed: float
    micro: float
    batch: float

    def total(self, micro_batch: int, share: int) -> float:
        """Of a process that takes `share` crops a step, `micro_batch` at a time."""
        return self.fixed + self.micro * micro_batch + self.batch * share


def _shape(recipe: Recipe, crops: int) -> tuple[int, int, int, int]:
    """Of a batch of the recipe's crops; signals have height 1."""
    size = recipe.training.crop
    return crops, recipe.network.channels, size if recipe.network.dims == 2 else 1, size


def saved_bytes(recipe: Recipe, crops: int, bf16: bool) -> tuple[int, int]:
    """(all, the largest single one): bytes of the tensors that autograd keeps between forward and backward pass."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes: dict[int, int] = {}
    # Shapes alone: the full network's tensors take 1.3 GB and 8 seconds
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        model = Model(recipe.network).train()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}  # there are no addresses of data here

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                sizes[storage._cdata] = storage.nbytes()
            return tensor

        y0, x = (torch.zeros(_shape(recipe, crops)).contiguous(memory_format=torch.channels_last) for _ in range(2))
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            losses = loss_terms(model, y0, x, torch.full((crops,), 0.5), torch.zeros_like(y0))
    del losses  # kept until here: a freed tensor's place could be counted twice, or not at all
    return sum(sizes.values()), max(sizes.values())


def memory_model(recipe: Recipe, bf16: bool = True) -> Memory:
    """The memory of a training step of this recipe."""
    (one, largest), (two, _) = (saved_bytes(recipe, crops, bf16) for crops in (1, 2))
    per_crop = two - one
    with torch.device("meta"):
        fixed = _STATE_BYTES * count_parameters(Model(recipe.network)) + max(one - per_crop, 0)
    # In the backward pass the gradients of one layer's input and output stand beside what was saved.
    # Three images in fp32 wait for their micro-batch: y0, x, eps
    return Memory(fixed, per_crop + 2 * largest, 3 * 4 * math.prod(_shape(recipe, 1)))


def batch_table(recipe: Recipe, cards: tuple[int, ...] = CARDS, processes: tuple[int, ...] = (1, 8)) -> list[dict]:
    """What fits: one row a card, {"card", and for each number of processes "micro_batch", "accumulate", "gb"}.

    The total batch stays recipe.training.batch: micro_batch x accumulate x processes. micro_batch is 0 if none fits.
    """
    memory, rows = memory_model(recipe), []
    for card in cards:
        row: dict[str | int, Any] = {"card": card}
        room = card * 1e9 * (1 - SPARE) - CONTEXT
        for n in (n for n in processes if recipe.training.batch % n == 0):
            share = recipe.training.batch // n
            fitting = (m for m in range(share, 0, -1) if share % m == 0 and memory.total(m, share) <= room)
            micro = next(fitting, 0)
            gb = (memory.total(micro, share) + CONTEXT) / 1e9
            row[n] = {"micro_batch": micro, "accumulate": share // micro if micro else 0, "gb": gb}
        rows.append(row)
    return rows


def table_text(recipe: Recipe, cards: tuple[int, ...] = CARDS) -> str:
    """`batch_table` in Markdown."""
    rows = batch_table(recipe, cards)
    processes = [n for n in rows[0] if n != "card"]
    heads = [f"on {n} {'card' if n == 1 else 'cards'}: crops at a time x accumulate | memory" for n in processes]
    lines = ["| card | " + " | ".join(heads) + " |", "|---" * (1 + 2 * len(heads)) + "|"]
    for row in rows:
        cells = [f"{row['card']} GB"]
        for fit in (row[n] for n in processes):
            fits = f"{fit['micro_batch']} x {fit['accumulate']} | {fit['gb']:.1f} GB"
            cells.append(fits if fit["micro_batch"] else "does not fit | -")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gigaflops(recipe: Recipe) -> float:
    """10^9 floating-point operations to train on one crop, as torch counts them; backward counts as two forward."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        image = torch.zeros(_shape(recipe, 1))
        Model(recipe.network)(image, image, torch.full((1,), 0.5))
    return 3 * counter.get_total_flops() / 1e9


def seconds_a_step(state: TrainState, processes: int = 1, crops: int | None = None) -> float:
    """Timed: forward and backward pass of some crops, eager, scaled to the process's share of a step.

    Weights, optimiser and step are left as they were.

    Args:
        crops: how many to time with (default: a micro-batch, at most 4 on the CPU); half as many, and so on, where they
            do not fit: which micro-batch does is what an estimate is asked for.
    Raises: torch.OutOfMemoryError if one crop does not fit.
    """
    c, device = state.training, state.device
    share = c.batch // processes
    crops = crops or min(share // c.accumulate or 1, 4 if device.type == "cpu" else 64)
    while True:
        try:
            return _seconds(state, crops) * share / crops
        except (RuntimeError, MemoryError) as error:
            if crops == 1 or not out_of_memory(error):
                raise
        # Here the error is gone, and with it all that its pass had kept
        state.model.zero_grad(set_to_none=True)
        if device.type != "cpu":
            with contextlib.suppress(RuntimeError):  # before torch 2.14, Apple's GPUs refuse
                torch.accelerator.empty_cache()
        crops //= 2


def _seconds(state: TrainState, crops: int) -> float:
    """Of a forward and a backward pass, the faster of two."""
    y0 = torch.zeros(_shape(state.recipe, crops), device=state.device).contiguous(memory_format=state.layout)
    level = torch.full((crops,), 0.5, device=state.device)
    times = []
    for _ in range(3):  # the first warms up
        start = time.perf_counter()
        with torch.autocast(state.device.type, torch.bfloat16, enabled=state.bf16):
            denoise, guidance = loss_terms(state.model, y0, y0, level, y0)
        (denoise + guidance).backward()
        synchronize(state.device)
        times.append(time.perf_counter() - start)
        state.model.zero_grad(set_to_none=True)
    return min(times[1:])


def estimate_line(state: TrainState, processes: int = 1) -> str:
    """One sentence: time and memory of what is left of a run, on this device."""
    c, seconds = state.training, seconds_a_step(state, processes)
    share, left = c.batch // processes, c.steps - state.step
    gb = memory_model(state.recipe, state.bf16).total(share // c.accumulate, share) / 1e9
    rate, compiled = c.batch / seconds, "; compiled, less of both" if c.compile else ""
    return (
        f"estimate: {duration(left * seconds)} for {left:,} steps of {seconds:.3g} s ({rate:,.0f} crops/s), "
        f"{gb:.2g} GB a process beside PyTorch itself{compiled}"
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

"""Before a training starts: how much memory it takes, what fits which card, and how long it will be.

Memory is computed: what autograd saves is counted in two forward passes of tensors without content, of one crop and of
two; weights, gradients, optimiser and EMA by their sizes. Compiled trainings save, and take, less than the figure.
"""

import datetime
import functools
import math
import time

import torch
from torch import Tensor

from ..machine import out_of_memory, synchronize
from ..model import Model, Recipe, count_parameters
from ..train import TrainState, loss_terms

CARDS = (8, 16, 24, 80)  # GB
CONTEXT = 0.8e9  # bytes: CUDA itself, cuDNN's and cuBLAS's workspaces; our allowance, not measured
SPARE = 0.1  # share of a card that is left to the allocator's gaps; our allowance
_STATE_BYTES = 20  # a parameter, all fp32: weight, gradient, two moments of AdamW, EMA


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


@functools.cache
def _fixed_and_per_crop(recipe: Recipe, bf16: bool) -> tuple[float, float]:
    """Bytes that a step takes whatever its size, and those of each crop of a micro-batch."""
    (one, largest), (two, _) = (saved_bytes(recipe, crops, bf16) for crops in (1, 2))
    with torch.device("meta"):
        parameters = count_parameters(Model(recipe.network))
    # In the backward pass the gradients of one layer's input and output stand beside what was saved
    return _STATE_BYTES * parameters + max(2 * one - two, 0), two - one + 2 * largest


def step_bytes(recipe: Recipe, micro_batch: int, share: int, bf16: bool = True) -> float:
    """Memory that a training step takes of a process: `share` crops, `micro_batch` at a time."""
    fixed, per_crop = _fixed_and_per_crop(recipe, bf16)
    waiting = 3 * 4 * math.prod(_shape(recipe, share))  # y0, x and eps, in fp32, wait for their micro-batch
    return fixed + per_crop * micro_batch + waiting


def what_fits(recipe: Recipe, card: float, processes: int = 1) -> tuple[int, float]:
    """(crops at a time, bytes) for a process on a card of so many GB that takes its share of the recipe's batch.

    The largest micro-batch that divides the share and leaves room for CONTEXT, counted too, and SPARE; (0, 0) if none.
    """
    if recipe.training.batch % processes:
        return 0, 0.0
    share, room = recipe.training.batch // processes, card * 1e9 * (1 - SPARE)
    for micro in (m for m in range(share, 0, -1) if share % m == 0):
        if (needed := step_bytes(recipe, micro, share) + CONTEXT) <= room:
            return micro, needed
    return 0, 0.0


def table_text(recipe: Recipe, cards: tuple[int, ...] = CARDS) -> str:
    """What fits common cards, in Markdown: crops at a time x accumulate x processes make up the recipe's batch."""
    head = "crops at a time x accumulate | memory"
    lines = [f"| card | on 1 card: {head} | on 8 cards: {head} |", "|---|---|---|---|---|"]
    for card in cards:
        cells = []
        for processes in (1, 8):
            micro, needed = what_fits(recipe, card, processes)
            accumulate = recipe.training.batch // processes // (micro or 1)
            cells.append(f"{micro} x {accumulate} | {needed / 1e9:.1f} GB" if micro else "does not fit | -")
        lines.append(f"| {card} GB | {' | '.join(cells)} |")
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
    """Timed: forward and backward pass, eager, scaled to the process's share of a step. The state stays as it is.

    crops: how many to time with (default: a micro-batch, at most 4 on the CPU and 64 elsewhere); half as many, and so
        on, where they do not fit: which micro-batch does is what an estimate is asked for.
    Raises: torch.OutOfMemoryError if one crop does not fit.
    """
    c = state.training
    share = c.batch // processes
    crops = crops or min(share // c.accumulate or 1, 4 if state.device.type == "cpu" else 64)
    try:
        return _seconds(state, crops) * share / crops
    except (RuntimeError, MemoryError) as error:
        if crops == 1 or not out_of_memory(error):
            raise
    # Here the error is gone, and with it all that its pass had kept
    state.model.zero_grad(set_to_none=True)
    return seconds_a_step(state, processes, crops // 2)


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
    gb = step_bytes(state.recipe, share // c.accumulate, share, state.bf16) / 1e9
    duration, rate = datetime.timedelta(seconds=round(left * seconds)), c.batch / seconds
    return (
        f"estimate: {duration} for {left:,} steps of {seconds:.3g} s ({rate:,.0f} crops/s), "
        f"{gb:.2g} GB per process beside PyTorch itself{'; compiled, less of both' if c.compile else ''}"
    )

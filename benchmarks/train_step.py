"""Training speed: crops a second of one whole optimiser step (noise, forward, backward, clipping, AdamW, EMA).

python benchmarks/train_step.py [--device cuda] [--batch 256] [--compile] [--out speed.json]

The batch lies ready on the device: making it is not timed. The first steps, in which libraries choose their
algorithms, are left out; the median of the others counts, and their quartiles say how steady it is.
"""

import argparse
import json
import os
import statistics
import sys

import torch
from common import clock, place

from tinymsg.cli.allocator import restart_with_allocator
from tinymsg.machine import accelerator
from tinymsg.model import Recipe, count_parameters, plain_twin
from tinymsg.train import TrainState, fit
from tinymsg.training.parallel import training_network

# The sizes of the paper's nearest relative (DvSR): base 32, three residual blocks a resolution, 128x128 crops
BASE = Recipe().change(widths=(32, 64, 96, 128), blocks=3, crop=128)


def measure(recipe: Recipe, device: torch.device, warmup: int, repeats: int) -> dict:
    """Seconds a step of one recipe."""
    c = recipe.training
    state = TrainState(recipe, device)
    generator = torch.Generator(device).manual_seed(0)
    shape = (c.batch, recipe.network.channels, c.crop, c.crop)
    y0, x = (torch.rand(shape, generator=generator, device=device) * 2 - 1 for _ in range(2))
    steps = fit(state, lambda step: (y0, x), network=training_network(state))
    seconds = []
    for number in range(warmup + repeats):
        start = clock(device)
        next(steps)
        if number >= warmup:
            seconds.append(clock(device) - start)
    low, median, high = statistics.quantiles(seconds, n=4)
    return {
        "parameters_M": round(count_parameters(state.model) / 1e6, 2),
        "batch": c.batch,
        "crop": c.crop,
        "precision": "bf16" if state.bf16 else "fp32",
        "compile": c.compile,
        "seconds_median": median,
        "seconds_quartiles": [low, high],
        "crops_per_second": c.batch / median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=str(accelerator()))
    parser.add_argument("--batch", type=int, help="crops per step (default: 4 on the CPU, 256 on a GPU)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, help="timed steps (default: 8 on the CPU, 50 on a GPU)")
    parser.add_argument("--out", help="also write the JSON to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = device.type != "cpu"
    repeats = args.repeats or (50 if gpu else 8)
    changes = {"batch": args.batch or (256 if gpu else 4), "compile": "default" if args.compile else "", "steps": 10**6}
    recipe, lesson = BASE.change(**changes), Recipe().change(**changes)
    arms = {
        "guided": recipe,
        "plain": Recipe(plain_twin(recipe.network), recipe.training),
        "regression": Recipe(plain_twin(recipe.network, "regression"), recipe.training),
        "guided, lesson size": lesson,
    }
    where = place(device)
    print(f"{where}, torch {torch.__version__}")
    print(f"{'arm':<20} {'M params':>8} {'batch':>6} {'type':>5} {'s/step':>8} {'crops/s':>8}")
    rows = {}
    for name, arm in arms.items():
        rows[name] = row = measure(arm, device, warmup=10 if gpu else 2, repeats=repeats)
        print(
            f"{name:<20} {row['parameters_M']:8.2f} {row['batch']:6d} {row['precision']:>5} "
            f"{row['seconds_median']:8.3f} {row['crops_per_second']:8.1f}",
            flush=True,
        )
    text = json.dumps(
        {"where": where, "torch": torch.__version__, "allocator_tuned": "MALLOC_TOP_PAD_" in os.environ, "arms": rows},
        indent=1,
    )
    print(text)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    restart_with_allocator(*sys.argv)
    main()

"""Peak memory and seconds of restoring a whole picture, without tiles.

python benchmarks/restore.py [--size 1280x720] [--device cuda] [--models scenes-guided full] [--out restore.json]

Each measurement is a process of its own, so that a peak is nobody else's. `full` is the network of that profile with
random weights: memory and time do not depend on their values. The first picture, in which libraries choose their
algorithms, is left out of the seconds, not out of the peak.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from common import clock, place

from tinymsg.cli.allocator import ALLOCATOR
from tinymsg.machine import accelerator, use_bf16
from tinymsg.model import build_model, count_parameters, pretrained, pretrained_names
from tinymsg.sample import Setting, prepare, restore_steps
from tinymsg.training.profiles import profile
from tinymsg.training.runs import peak_memory

HEAD = "{:<16} {:>8} {:>5} {:>8} {:>7} {:>11} {:>9} {:>9}"


def measure(name: str, precision: str, width: int, height: int, steps: int, repeats: int, device: torch.device) -> dict:
    """Seconds and peak memory of one model at one number of steps, in this process."""
    shipped = name in pretrained_names()
    model = pretrained(name, device) if shipped else build_model(profile(name).network).eval().to(device)
    model.config = replace(model.config, precision=precision)
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
    before = peak_memory(device)
    guidance, seconds = [], []
    for _ in range(1 + repeats):
        start = clock(device)
        prepared = prepare(model, x)
        middle = clock(device)
        for _ in restore_steps(model, x, Setting("ancestral", steps, 0.5), prepared=prepared):
            pass
        guidance.append(middle - start)
        seconds.append(clock(device) - middle)
    return {
        "model": name,
        "parameters_M": round(count_parameters(model) / 1e6, 2),
        "size": f"{width}x{height}",
        "precision": "bf16" if use_bf16(precision, device) else "fp32",
        "steps": steps,
        "guidance_seconds": round(statistics.median(guidance[1:]), 3),
        "steps_seconds": round(statistics.median(seconds[1:]), 3),
        "peak_GB": round(peak_memory(device) / 1e9, 2),
        "before_GB": round(before / 1e9, 2),
    }


def row(name: str, precision: str, args: argparse.Namespace) -> dict:
    """Both numbers of steps of one model: what a step costs is their difference."""
    few, many = sorted(args.steps)
    found = {}
    for steps in (few, many):
        task = json.dumps([name, precision, *args.size, steps, args.repeats])
        command = [sys.executable, __file__, "--child", task, "--device", args.device]
        done = subprocess.run(command, env=os.environ | ALLOCATOR, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return {"model": name, "precision": precision, "failed": f"exit status {done.returncode}"}
        found[steps] = json.loads(done.stdout)
    step = (found[many]["steps_seconds"] - found[few]["steps_seconds"]) / (many - few)
    return found[many] | {
        "step_seconds": round(step, 3),
        "first_steps_seconds": found[few]["steps_seconds"],
        "first_steps": few,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1280x720", type=lambda text: tuple(map(int, text.split("x"))), metavar="WxH")
    parser.add_argument("--device", default=str(accelerator()))
    parser.add_argument("--models", nargs="+", default=["scenes-guided", "full"], help="shipped weights, or profiles")
    parser.add_argument("--precisions", nargs="+", default=["auto"], choices=("auto", "fp32", "bf16"))
    parser.add_argument("--steps", nargs=2, type=int, default=[1, 3], metavar="N", help="two numbers of steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", help="also write the JSON to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.child:
        name, precision, width, height, steps, repeats = json.loads(args.child)
        print(json.dumps(measure(name, precision, width, height, steps, repeats, device)))
        return
    where = place(device)
    print(f"{where}, torch {torch.__version__}, {args.size[0]}x{args.size[1]}, whole")
    print(
        HEAD.format(
            "model", "M params", "type", "peak GB", "before", "guidance s", f"{min(args.steps)} step s", "a step s"
        )
    )
    rows = []
    for name in args.models:
        for precision in args.precisions:
            rows.append(found := row(name, precision, args))
            if "failed" in found:
                print(f"{name:<16} {precision}: {found['failed']}", flush=True)
                continue
            columns = (
                "parameters_M",
                "precision",
                "peak_GB",
                "before_GB",
                "guidance_seconds",
                "first_steps_seconds",
                "step_seconds",
            )
            print(HEAD.format(name, *(found[column] for column in columns)), flush=True)
    text = json.dumps({"where": where, "torch": torch.__version__, "rows": rows}, indent=1)
    if args.out:
        Path(args.out).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()

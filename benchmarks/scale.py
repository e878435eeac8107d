"""Scale on paper: what a step costs here as size, batch, width, steps and processes grow, and what the full training
would cost on GPUs that are not here.

python benchmarks/scale.py [--out benchmarks/results] [--predict-only]

The first half is measured on this machine; --predict-only takes it from scale.json of an earlier run. The second
half is arithmetic: operations and bytes counted from the network, divided by what a GPU can do, times an efficiency
that is assumed. Writes scale.json and scale.md.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from common import clock, place
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinymsg.cli.allocator import restart_with_allocator
from tinymsg.model import Model, Recipe, build_model, count_parameters
from tinymsg.sample import Setting, prepare, restore_steps
from tinymsg.train import TrainState, fit, loss_terms
from tinymsg.training.estimate import gigaflops
from tinymsg.training.parallel import join_processes, leave_processes, rank_and_processes, training_network
from tinymsg.training.profiles import profile

FULL = profile("full").change(compile="")


@dataclass(frozen=True)
class Cluster:
    """The assumptions of the prediction, for a GPU of the class of an H200. Everything else is counted or measured."""

    tflops: float = 790.0  # bf16 matrix product, measured on one; the data sheet says 989
    terabytes: float = 4.3  # a second, to and from its memory; the data sheet says 4.8
    inside: float = 450e9  # bytes a second between the eight GPUs of one machine (NVLink)
    outside: float = 50e9  # bytes a second of each GPU to other machines (400 Gbit/s)
    launch: float = 4e-6  # seconds to start one kernel from Python; kernels of a large batch hide it
    price: float = 3.5  # US dollars a GPU and hour: an assumption in the middle of what is asked for, 2 to 5
    efficiency: tuple[float, float] = (0.64, 0.3)  # of the time that compute and memory take: our goal; a poor day


# --- counted ----------------------------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Counts operations that compute, and the bytes that they read and write; views are free."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if tensors and not function.is_view:
            self.kernels += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def traffic(recipe: Recipe, crops: int = 2) -> dict[str, float]:
    """Of a training step's passes, uncompiled: {"kernels", "bytes_a_crop"}, counted on the CPU in bf16."""
    model, side = build_model(recipe.network).to(memory_format=torch.channels_last).train(), recipe.training.crop
    y0, x = (torch.zeros(crops, 3, side, side).contiguous(memory_format=torch.channels_last) for _ in range(2))
    with Traffic() as counted:
        with torch.autocast("cpu", torch.bfloat16):
            denoise, guidance = loss_terms(model, y0, x, torch.full((crops,), 0.5), torch.zeros_like(y0))
        (denoise + guidance).backward()
    return {"kernels": counted.kernels, "bytes_a_crop": counted.bytes / crops}


# --- measured here ----------------------------------------------------------------------------------------------


def step_seconds(recipe: Recipe, repeats: int = 3) -> float:
    """Median seconds of a whole training step on zeros, the first left out."""
    state = TrainState(recipe.change(steps=10**6))
    state.share = rank_and_processes()
    side, share = recipe.training.crop, recipe.training.batch // state.share[1]
    y0, x = (torch.zeros(share, 3, side, side) for _ in range(2))
    steps, seconds = fit(state, lambda step: (y0, x), network=training_network(state)), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _process(rank: int, processes: int, port: int, threads: int, queue) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(threads)
    join_processes(torch.device("cpu"))
    seconds = step_seconds(FULL.change(batch=4))
    leave_processes()
    if rank == 0:
        queue.put(seconds)


def shared_seconds(processes: int) -> float:
    """Seconds of a step of 4 crops that several processes share, each with its part of this machine's cores."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(torch.get_num_threads() // processes, 1)
    workers = [
        context.Process(target=_process, args=(rank, processes, port, threads, queue)) for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    seconds = queue.get(timeout=600)
    for worker in workers:
        worker.join()
    return seconds


def restoration(height: int, width: int, steps: int, model: Model) -> tuple[float, float]:
    """(seconds of the guidance, of all steps) of a whole picture."""
    x = torch.zeros(1, 3, height, width)
    start = clock(x.device)
    prepared = prepare(model, x)
    begun = clock(x.device)
    for _ in restore_steps(model, x, Setting("ancestral", steps, 0.5), prepared=prepared):
        pass
    return begun - start, clock(x.device) - begun


def measured(say) -> dict[str, list[dict]]:
    """One row a measurement: what was changed, GFLOP, seconds, and GFLOP a second."""
    changes = {
        "batch": [{"batch": n} for n in (1, 2, 4, 8)],
        "crop": [{"batch": 2, "crop": n} for n in (64, 128, 192)],
        "width": [{"batch": 2, "widths": tuple(n * k for k in (1, 2, 3, 4))} for n in (16, 32, 64)],
    }
    rows: dict[str, list[dict]] = {}
    for name, settings in changes.items():
        for setting in settings:
            recipe = FULL.change(**setting)
            work, seconds = recipe.training.batch * gigaflops(recipe), step_seconds(recipe)
            at = setting["widths"][0] if name == "width" else setting[name]
            rows.setdefault(name, []).append({"at": at, "gflop": round(work, 1), "seconds": round(seconds, 4)})
            say(f"training, {name} {at}: {seconds:.3f} s, {work / seconds:.0f} GFLOP/s")
    rows["processes"] = []
    for processes in (1, 2):
        seconds = shared_seconds(processes)
        rows["processes"].append(
            {"at": processes, "gflop": round(4 * gigaflops(FULL), 1), "seconds": round(seconds, 4)}
        )
        say(f"training, 4 crops by {processes} processes: {seconds:.3f} s")
    model = build_model(FULL.network).eval()
    rows["picture"], rows["evaluations"] = [], []
    restoration(256, 256, 1, model)  # warms up
    for height, width in ((256, 256), (512, 512), (720, 1280)):
        guidance, steps = restoration(height, width, 2, model)
        rows["picture"].append(
            {
                "at": f"{width}x{height}",
                "gflop": round(gigaflops(FULL) / 3 * height * width / FULL.training.crop**2, 1),
                "guidance_seconds": round(guidance, 4),
                "seconds": round(steps / 2, 4),
            }
        )
        say(f"a step at {width}x{height}: {steps / 2:.3f} s")
    for steps in (1, 4, 16):
        guidance, seconds = restoration(256, 256, steps, model)
        rows["evaluations"].append(
            {"at": steps, "gflop": None, "guidance_seconds": round(guidance, 4), "seconds": round(seconds, 4)}
        )
        say(f"{steps} evaluations at 256x256: {seconds:.3f} s and {guidance:.3f} s for the guidance")
    return rows


# --- predicted --------------------------------------------------------------------------------------------------


def predicted(recipe: Recipe, counted: dict, cluster: Cluster, gpus: int, efficiency: float) -> dict[str, float]:
    """Seconds a step, hours and dollars of a whole training on so many GPUs, and what bounds the step.

    A step's passes take their compute and memory time, one after the other, over the efficiency, or as long as its
    kernels take to start, whichever is longer; then the gradients go once around the ring of GPUs (not hidden).
    """
    crops = recipe.training.batch / gpus
    busy = (
        crops
        * (1e9 * gigaflops(recipe) / (cluster.tflops * 1e12) + counted["bytes_a_crop"] / (cluster.terabytes * 1e12))
        / efficiency
    )
    launches = counted["kernels"] * cluster.launch
    bandwidth = cluster.inside if gpus <= 8 else cluster.outside
    exchange = 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * 4 * counted["parameters"] / bandwidth
    seconds = max(busy, launches) + exchange
    hours = recipe.training.steps * seconds / 3600
    return {
        "gpus": gpus,
        "crops_a_gpu": crops,
        "step_ms": 1e3 * seconds,
        "exchange_ms": 1e3 * exchange,
        "hours": hours,
        "dollars": hours * gpus * cluster.price,
        "bound": "launches" if launches > busy else "compute and memory",
    }


def prediction_table(results: dict) -> str:
    """Hours and money of the full profile, in Markdown; "to": at our goal's efficiency, to a poor one."""
    lines = ["| GPUs | crops each | a step | hours | US dollars | bound by |", "|---|---|---|---|---|---|"]
    for good, poor in zip(*results["predicted"], strict=True):
        ends = [
            [f"{round(row[key], digits):.0f}" for row in (good, poor)]
            for key, digits in (("step_ms", 0), ("hours", 0), ("dollars", -1))
        ]
        spans = [low if low == high else f"{low} to {high}" for low, high in ends]
        lines.append(
            f"| {good['gpus']} | {good['crops_a_gpu']:g} | {spans[0]} ms | {spans[1]} | {spans[2]} | {good['bound']} |"
        )
    return "\n".join(lines)


def measured_table(rows: dict[str, list[dict]]) -> str:
    """What was measured, one line a thing that grows."""
    titles = {
        "batch": "crops of a training step",
        "crop": "side of the crops, 2 a step",
        "width": "channels at full resolution, 2 crops",
        "processes": "processes that share 4 crops and the cores",
        "picture": "picture of a sampling step",
        "evaluations": "evaluations at 256x256",
    }
    lines = ["| what grows | seconds |", "|---|---|"]
    for name, title in titles.items():
        lines.append(f"| {title} | " + ", ".join(f"{row['at']}: {row['seconds']:.3g}" for row in rows[name]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", default="benchmarks/results", help="folder of scale.json and scale.md (default: %(default)s)"
    )
    parser.add_argument("--predict-only", action="store_true", help="measure nothing: take that half from scale.json")
    args = parser.parse_args()
    file = Path(args.out) / "scale.json"
    if args.predict_only:
        results = json.loads(file.read_text())
    else:
        results = {
            "machine": place(torch.device("cpu")),
            "torch": torch.__version__,
            "measured": measured(lambda line: print(line, flush=True)),
        }
    cluster = Cluster()
    counted = traffic(FULL) | {
        "parameters": count_parameters(build_model(FULL.network)),
        "gflop_a_crop": gigaflops(FULL),
    }
    results |= {
        "counted": counted,
        "assumed": vars(cluster),
        "predicted": [[predicted(FULL, counted, cluster, n, e) for n in (1, 8, 64)] for e in cluster.efficiency],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    text = f"{measured_table(results['measured'])}\n\n{prediction_table(results)}\n"
    (file.parent / "scale.md").write_text(text)
    print(text)


if __name__ == "__main__":
    restart_with_allocator(*sys.argv)
    main()

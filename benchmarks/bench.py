"""Ours against the peers, in one run: training, sampling, memory, data. `make bench` installs the peers and runs it.

python benchmarks/bench.py [--device cuda] [--width 32] [--rounds 3] [--out benchmarks/results]

Every contender lives in a process of its own, so that a peak of memory is nobody else's; they take turns, round after
round, so that a slow minute of the machine meets all of them. What counts is the ratio to ours within a round, at
equal FLOPs: its median and its spread over the rounds. End to end means from a folder of PNG pairs of 1280x720, each
as its own trainer reads them: ours has packed it before. Writes bench.json, bench.md and bench.png; what was measured
until it ends early is in bench.json.part. Three rounds take about an hour on two cores without units for bf16.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import torch
from common import clock, place
from loader import make_pictures
from peers import CONTENDERS, Contender

from tinymsg.cli.allocator import ALLOCATOR, restart_with_allocator
from tinymsg.datasets.folders import folder_pairs
from tinymsg.datasets.packing import pack
from tinymsg.machine import accelerator, use_bf16
from tinymsg.training.runs import peak_memory

# Kinds of operation, by parts of their names: PyTorch's on a CPU, the kernels' on a GPU
OPERATIONS = {
    "convolution": ("conv", "gemm", "cudnn", "xmma"),
    "normalisation": ("norm",),
    "activation": ("silu", "gelu", "mish"),
}


def machine_limits(device: torch.device) -> dict[str, float | str]:
    """What this machine can do at best: matrix product and convolution (TFLOP/s) in the number type that the library
    chooses here; copying (GB/s). The best of 5 each."""

    def best(work, warmup: int = 2) -> float:
        seconds = []
        for _ in range(warmup + 5):
            start = clock(device)
            work()
            seconds.append(clock(device) - start)
        return min(seconds[warmup:])

    precision = "bf16" if use_bf16("auto", device) else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    size = 32 if device.type == "cuda" else 8
    image = torch.randn(size, 64, 128, 128, device=device).to(dtype, memory_format=torch.channels_last).requires_grad_()
    flops = 3 * 2 * size * 128 * 128 * 64 * 64 * 9  # forward, and two backward passes of the same cost
    block = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    other = torch.empty_like(block)
    return {
        "precision": precision,
        "matmul_tflops": round(2 * n**3 / best(lambda: a @ b) / 1e12, 3),
        "conv_tflops": round(flops / best(lambda: layer(image).sum().backward()) / 1e12, 3),
        "copy_gbs": round(2 * block.numel() * 4 / best(lambda: other.copy_(block)) / 1e9, 1),
    }


class Worker:
    """A contender, in its process: each method is a kind of request; times are after a warm-up."""

    def __init__(self, name: str, width: int, device: torch.device):
        self.name, self.width, self.device = name, width, device
        self.fast = device.type == "cuda"  # its steps are short: more of them, and more before the clock starts
        self.one, self.batch = None, None  # the contender as it is set up, and for how many crops

    def contender(self, batch: int) -> Contender:
        """The contender for so many crops a step; one at a time: its memory is not the next one's."""
        if self.one is None or self.one.batch != batch:
            self.one = None
            torch.compiler.reset()  # nor are its compiled forms, of which torch keeps few
            self.one = Contender(self.name, self.width, self.device, batch)
            self.batch = (self.noise(0, batch, 128, 128), self.noise(1, batch, 128, 128))
        return self.one

    def noise(self, seed: int, batch: int, height: int, wide: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(batch, 3, height, wide, generator=generator) * 2 - 1).to(self.device)

    def about(self) -> dict:
        """Its size and the cost of one crop."""
        it = self.contender(1)
        parameters = sum(p.numel() for p in it.network.parameters())
        return {"parameters_M": round(parameters / 1e6, 2), "gflop": it.gigaflops()}

    def train(self, batch: int, steps: int) -> float:
        """Seconds a training step."""
        it, steps = self.contender(batch), 20 if self.fast else steps
        it.train(lambda step: self.batch, 5 if self.fast else 1)
        start = clock(self.device)
        it.train(lambda step: self.batch, steps)
        return (clock(self.device) - start) / steps

    def folder(self, batch: int, steps: int, pictures: str, packed: str) -> tuple[float, float]:
        """Seconds a training step from a folder, and seconds of it that were spent waiting for data."""
        if self.fast:
            steps = 8 * (os.cpu_count() or 1)  # each worker of a loader has two batches ready when the clock starts
        it, waited = self.contender(batch), []
        source = it.source(Path(pictures), Path(packed))

        def timed(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            begin = time.perf_counter()
            pair = source(step)
            waited.append(time.perf_counter() - begin)
            return pair

        it.train(timed)
        start, done = clock(self.device), len(waited)
        it.train(timed, steps)
        return (clock(self.device) - start) / steps, sum(waited[done:]) / steps

    def sample(self, height: int, wide: int, steps: int) -> tuple[float, float]:
        """Seconds of what is done once a picture, and of a network evaluation."""
        it, steps = self.contender(1), 20 if self.fast else steps
        x = self.noise(0, 1, height, wide)
        start = clock(self.device)
        it.begin(x)
        begun = clock(self.device)
        for _ in range(5 if self.fast else 1):
            it.step()
        warm = clock(self.device)
        for _ in range(steps):
            it.step()
        return begun - start, (clock(self.device) - warm) / steps

    def profile(self, batch: int) -> dict[str, float]:
        """Where the time of a training step goes."""
        it = self.contender(batch)
        it.train(lambda step: self.batch)
        return shares(lambda: it.train(lambda step: self.batch), self.device)

    def memory(self) -> float:
        """Peak of the process so far, GB."""
        return round(peak_memory(self.device) / 1e9, 2)


def serve(pipe, name: str, width: int, device_name: str) -> None:
    """A contender's process: answers (kind, *arguments) until None comes."""
    worker = Worker(name, width, torch.device(device_name))
    while (request := pipe.recv()) is not None:
        kind, *arguments = request
        pipe.send(getattr(worker, kind)(*arguments))
        give_back(worker.device)


def shares(work, device: torch.device) -> dict[str, float]:
    """Where the time of `work` goes, by kind of operation; sums to 1."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]) as recorded:
        work()
    spent = dict.fromkeys(OPERATIONS, 0.0) | {"the rest": 0.0}
    for event in recorded.key_averages():
        if event.is_user_annotation:
            continue  # it spans the kernels that are counted already
        name = event.key.lower()
        fused = name.startswith("triton_")  # compiled from several, pointwise ones, and named after all of them
        kind = next(
            (kind for kind, marks in OPERATIONS.items() if not fused and any(mark in name for mark in marks)),
            "the rest",
        )
        spent[kind] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return {kind: round(time / sum(spent.values()), 3) for kind, time in spent.items()}


def give_back(device: torch.device) -> None:
    """Return what is free to the system: all contenders' memory together would not fit beside the one that works."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def allocator_of(name: str):
    """The environment in which a contender's process starts: glibc reads its settings then, and only then."""
    before = dict(os.environ)
    for setting in ALLOCATOR:
        os.environ.pop(setting, None)
    if sys.platform == "linux" and (name.startswith("ours") or name.endswith("tuned")):
        os.environ.update(ALLOCATOR)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Field:
    """All contenders, each behind a pipe; asked one at a time."""

    def __init__(self, names: tuple[str, ...], width: int, device: str):
        """Ours and the tuned ones start with the allocator's settings, which our commands set; the shipped without."""
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = {}, []
        for name in names:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, name, width, device))  # may have workers: no daemon
            with allocator_of(name):
                process.start()
            there.close()
            self.pipes[name] = here
            self.processes.append(process)

    def ask(self, *request) -> dict:
        """The answers of all, one after the other; one that dies (out of memory) has none, and is not asked again."""
        answers = {}
        for name, pipe in list(self.pipes.items()):
            try:
                pipe.send(request)
                answers[name] = pipe.recv()
            except (EOFError, ConnectionError):
                del self.pipes[name]
        return answers

    def rounds(self, request: tuple, rounds: int) -> dict[str, list]:
        """`rounds` answers of each to the same request, in turn; one that died on the way has none."""
        found = [self.ask(*request) for _ in range(rounds)]
        return {name: [answers[name] for answers in found] for name in found[-1]}

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes.values():
            with contextlib.suppress(ConnectionError):
                pipe.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()


def with_ours(names: list[str]) -> tuple[str, ...]:
    """The contenders that were asked for, each once, and ours, which all are compared with."""
    return tuple(dict.fromkeys(["ours", *names]))


def ratios(seconds: dict[str, list[float]], about: dict[str, dict], ours: str = "ours") -> dict[str, dict]:
    """Seconds and, within a round, how many times as long as ours at equal FLOPs: "seconds", "ratio", "low", "high".

    The networks are matched as far as their structures allow; what is left is divided out. One that failed when asked
    `about` itself has no row; without ours there is none.
    """
    known, table = {name: values for name, values in seconds.items() if about.get(name)}, {}
    if ours not in known:
        return {}
    for name, values in known.items():
        cost = about[name]["gflop"] / about[ours]["gflop"]
        within = sorted(v / o / cost for v, o in zip(values, seconds[ours], strict=True))
        table[name] = {
            "seconds": statistics.median(values),
            "ratio": statistics.median(within),
            "low": within[0],
            "high": within[-1],
        }
    return table


@contextlib.contextmanager
def field_of(names: tuple[str, ...], width: int, device: str):
    """New processes: what they have held at most is of one kind of work."""
    field = Field(names, width, device)
    try:
        yield field
    finally:
        field.close()


def measure(
    new_field,
    batches: list[int],
    sizes: list[tuple[int, int]],
    rounds: int,
    pictures: int,
    say,
    keep=lambda results: None,
) -> dict:
    """Every measurement of one run.

    new_field: makes the context of a `Field`. pictures: PNG pairs of the folder; 0 leaves end to end out.
    keep: is given the results so far, after each part.
    """

    def tell(title: str, table: dict) -> None:
        say(f"{title}: " + (", ".join(f"{name} x{row['ratio']:.2f}" for name, row in table.items()) or "ours failed"))
        keep(results)

    with new_field() as field:
        names, about = list(field.pipes), field.ask("about")
        results = {"about": {name: about.get(name) for name in names}, "train": {}, "sample": {}, "begin": {}}
        for batch in batches:
            answers = field.rounds(("train", batch, 2 if batch < 8 else 1), rounds)
            results["train"][str(batch)] = ratios(answers, about)
            tell(f"training, {batch} crops of 128x128", results["train"][str(batch)])
        results["shares"] = field.ask("profile", min(batches))
        results["memory_training"] = field.ask("memory")
    for height, wide in sizes:
        with new_field() as field:
            answers = field.rounds(("sample", height, wide, 2), rounds)
            size = f"{wide}x{height}"
            results["begin"][size] = {name: statistics.median(a for a, _ in values) for name, values in answers.items()}
            results["sample"][size] = ratios(
                {name: [step for _, step in values] for name, values in answers.items()}, about
            )
            results.setdefault("memory_sampling", {})[size] = field.ask("memory")
        tell(f"one step at {size}", results["sample"][size])
    if pictures:
        results["folder"] = end_to_end(new_field, sorted(batches)[len(batches) // 2], rounds, pictures, about)
        tell("end to end", results["folder"]["rows"])
    return results


def end_to_end(new_field, batch: int, rounds: int, pictures: int, about: dict) -> dict:
    """Training from a folder of PNG pairs: batch, seconds of packing, ratios with the share of time spent waiting."""
    with tempfile.TemporaryDirectory() as work, new_field() as field:
        folder, packed = Path(work) / "pictures", Path(work) / "packed"
        make_pictures(folder, pictures)
        start = time.perf_counter()
        pack(folder_pairs(folder), packed, "stand-in")
        packing = time.perf_counter() - start
        answers = field.rounds(("folder", batch, 2, str(folder), str(packed)), rounds)
        rows = ratios({name: [step for step, _ in values] for name, values in answers.items()}, about)
        for name, row in rows.items():
            row["waiting"] = statistics.median(waited / step for step, waited in answers[name])
        return {"batch": batch, "pairs": pictures, "packing_seconds": round(packing, 2), "rows": rows}


def panels(results: dict) -> dict[str, dict]:
    """{title: table of ratios} of everything that was compared, in order."""
    found = {f"training, {b} crops": table for b, table in results["train"].items()}
    if "folder" in results:
        found[f"from PNGs, {results['folder']['batch']} crops"] = results["folder"]["rows"]
    return found | {f"a step at {size}": table for size, table in results["sample"].items()}


def markdown(results: dict) -> str:
    """The run in Markdown: seconds of ours and how many times as long the others take, memory, the machine's limits."""
    about, tables = results["about"], panels(results)
    lines = ["| | M parameters | GFLOP a crop | " + " | ".join(tables) + " |", "|---" * (3 + len(tables)) + "|"]
    for name, facts in about.items():
        cells = []
        for table in tables.values():
            row = table.get(name)
            cells.append(
                "failed"
                if row is None
                else f"{row['seconds']:.3g} s"
                if name == "ours"
                else f"{row['ratio']:.2f}x ({row['low']:.2f} to {row['high']:.2f})"
            )
        size = f"{facts['parameters_M']} | {facts['gflop']:.1f}" if facts else "failed | failed"
        lines.append(f"| {name} | {size} | " + " | ".join(cells) + " |")
    memory = {"training": results["memory_training"]} | {
        f"a step at {size}": row for size, row in results["memory_sampling"].items()
    }
    lines += [
        "",
        "Peak memory of the process, GB:",
        "",
        "| | " + " | ".join(memory) + " | waits for data |",
        "|---" * (2 + len(memory)) + "|",
    ]
    waiting = results.get("folder", {"rows": {}})["rows"]
    for name in about:
        cells = [str(column.get(name, "failed")) for column in memory.values()]
        lines.append(
            f"| {name} | " + " | ".join(cells) + f" | {waiting[name]['waiting']:.2%} |"
            if name in waiting
            else f"| {name} | " + " | ".join(cells) + " | - |"
        )
    kinds = [*OPERATIONS, "the rest"]
    lines += [
        "",
        "Where the time of a training step goes:",
        "",
        "| | " + " | ".join(kinds) + " |",
        "|---" * (1 + len(kinds)) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{row[kind]:.0%}" for kind in kinds) + " |"
        for name, row in results["shares"].items()
    ]
    limits, batch = (
        results["limits"],
        max((b for b, table in results["train"].items() if "ours" in table), key=int, default=None),
    )
    lines += [
        "",
        f"{results['machine']}, PyTorch {results['torch']}, {results['rounds']} rounds: how many times as long as ours "
        "at equal FLOPs, median (least to most).",
    ]
    if batch is None:
        lines[-1] += " Ours failed: nothing can be compared with it."
        return "\n".join(lines)
    ours = results["train"][batch]["ours"]["seconds"]
    rate = 3 * about["ours"]["gflop"] * int(batch) / ours / 1e3
    lines[-1] += (
        f" Ours: {int(batch) / ours:.1f} crops a second at {batch}, {rate:.2f} TFLOP/s, "
        f"{rate / limits['conv_tflops']:.0%} of this machine's own convolution in {limits['precision']} "
        f"({limits['conv_tflops']} TFLOP/s), {rate / limits['matmul_tflops']:.0%} of its matrix product "
        f"({limits['matmul_tflops']}); it copies {limits['copy_gbs']} GB/s."
    )
    return "\n".join(lines)


def picture(results: dict, path: Path) -> None:
    """How many times as long the others take, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tables = panels(results)
    figure, axes = plt.subplots(
        1, len(tables), figsize=(2.3 * len(tables) + 1, 3.2), sharey=True, layout="constrained", squeeze=False
    )
    axes = axes[0]
    names = list(results["about"])
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        for row, name in enumerate(names):
            if name in table:
                color = "#0072B2" if name.startswith("ours") else "#E69F00" if name.endswith("tuned") else "#999999"
                axis.barh(row, table[name]["ratio"], color=color)
                axis.plot([table[name]["low"], table[name]["high"]], [row, row], color="black", linewidth=1)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    figure.supxlabel("times as long as ours at equal FLOPs (shorter is faster)", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=str(accelerator()))
    parser.add_argument(
        "--width", type=int, default=32, help="channels at full resolution, a multiple of 32 (default: %(default)s)"
    )
    parser.add_argument("--batches", type=int, nargs="+", help="crops per step (default: 2 8 32, on a GPU also 256)")
    parser.add_argument("--sizes", nargs="+", default=["256x256", "1280x720"], metavar="WxH")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: %(default)s)")
    parser.add_argument(
        "--pictures",
        type=int,
        default=32,
        help="PNG pairs of the end-to-end measurement; 0: without (default: %(default)s)",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=list(CONTENDERS),
        metavar="NAME",
        help="some of: " + "; ".join(CONTENDERS) + " (default: all; ours is always among them)",
    )
    parser.add_argument(
        "--out", default="benchmarks/results", help="folder of bench.json, bench.md, bench.png (default: %(default)s)"
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    batches = args.batches or ([2, 8, 32, 256] if device.type == "cuda" else [2, 8, 32])
    sizes = [tuple(reversed([int(n) for n in size.split("x")])) for size in args.sizes]
    names, out = with_ours(args.contenders), Path(args.out)
    peers = {name.partition(",")[0].replace("_", "-") for name in names} - {"ours", "sr3"}
    packages = {peer: metadata.version(peer) for peer in sorted(peers)}
    results = {
        "machine": place(device),
        "torch": torch.__version__,
        "packages": packages,
        "width": args.width,
        "rounds": args.rounds,
        "limits": machine_limits(device),
    }
    give_back(device)
    print(f"{results['machine']}: {results['limits']}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "bench.json.part"

    def keep(found: dict) -> None:
        partial.write_text(json.dumps(results | found, indent=1) + "\n")

    results |= measure(
        lambda: field_of(names, args.width, args.device),
        batches,
        sizes,
        args.rounds,
        args.pictures,
        lambda line: print(line, flush=True),
        keep,
    )
    keep({})
    partial.replace(out / "bench.json")
    (out / "bench.md").write_text(markdown(results) + "\n")
    picture(results, out / "bench.png")
    print(markdown(results))


if __name__ == "__main__":
    restart_with_allocator(*sys.argv)
    main()

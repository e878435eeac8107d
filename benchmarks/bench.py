"""Ours against the peers, in one run: training, sampling, memory, data. `make bench` installs the peers and runs it.

python benchmarks/bench.py [--device cuda] [--width 32] [--rounds 3] [--out benchmarks/results]

Every contender lives in a process of its own, so that a peak of memory is nobody else's; they take turns, round after
round, so that a slow minute of the machine meets all of them. What counts is the ratio to ours within a round, at equal FLOPs:
its median and its spread over the rounds. End to end means from a folder of PNG pairs of 1280x720, each as its own trainer
reads them: ours has packed it before. Writes bench.json, bench.md and bench.png; what was measured until it ends early is in
bench.json.part. Three rounds take about an hour on two cores without units for bf16.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import torch
from loader import make_pictures
from peers import CONTENDERS, Contender

from tinymsg.cli.allocator import ALLOCATOR, restart_with_allocator
from tinymsg.datasets.packing import folder_pairs, pack
from tinymsg.machine import use_bf16
from tinymsg.training.runs import peak_memory

# Kinds of operation, by parts of their names: PyTorch's on a CPU, the kernels' on a GPU
OPERATIONS = {
    "convolution": ("conv", "gemm", "cudnn", "xmma"),
    "normalisation": ("norm",),
    "activation": ("silu", "gelu", "mish"),
}


def clock(device: torch.device) -> float:
    """Seconds, once what was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine_limits(device: torch.device) -> dict[str, float | str]:
    """What this machine can do at best: matrix product and convolution (TFLOP/s) in the number type that is faster here, which
    the library then chooses too; copying (GB/s). The best of 5 each."""

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


def serve(pipe, name: str, width: int, device_name: str) -> None:
    """A contender's process: does what it is asked for, once to warm up and then timed, and answers with seconds; ends at None."""
    device = torch.device(device_name)
    batches, contenders = {}, {}
    fast = device.type == "cuda"  # its steps are short: more of them, and more before the clock starts

    def contender(batch: int) -> Contender:
        if batch not in contenders:
            contenders.clear()  # one at a time: its memory is not the next one's
            torch.compiler.reset()  # nor are its compiled forms, of which torch keeps few
            contenders[batch] = Contender(name, width, device, batch)
            generator = torch.Generator().manual_seed(0)
            batches[batch] = tuple(
                (torch.rand(batch, 3, 128, 128, generator=generator) * 2 - 1).to(device) for _ in range(2)
            )
        return contenders[batch]

    while (request := pipe.recv()) is not None:
        kind, *arguments = request
        if kind == "about":
            it = contender(1)
            pipe.send(
                {
                    "parameters_M": round(sum(p.numel() for p in it.network.parameters()) / 1e6, 2),
                    "gflop": it.gigaflops(),
                }
            )
        elif kind == "train":
            batch, steps = arguments[0], 20 if fast else arguments[1]
            it = contender(batch)
            it.train(lambda step: batches[batch], 5 if fast else 1)
            start = clock(device)
            it.train(lambda step: batches[batch], steps)
            pipe.send((clock(device) - start) / steps)
        elif kind == "folder":
            batch, steps, *folders = arguments
            if fast:
                steps = 8 * (os.cpu_count() or 1)  # each worker of a loader has two batches ready when the clock starts
            it, waited = contender(batch), []
            source = it.source(*map(Path, folders))

            def timed(step: int):
                begin = time.perf_counter()
                pair = source(step)
                waited.append(time.perf_counter() - begin)
                return pair

            it.train(timed)
            start, done = clock(device), len(waited)
            it.train(timed, steps)
            pipe.send(((clock(device) - start) / steps, sum(waited[done:]) / steps))
            del source, timed  # ends its processes: they would decode ahead in the others' turn
        elif kind == "sample":
            height, wide, steps = arguments
            it = contender(1)
            x = (torch.rand(1, 3, height, wide, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
            start = clock(device)
            it.begin(x)
            begun = clock(device)
            for _ in range(5 if fast else 1):
                it.step()
            warm, steps = clock(device), 20 if fast else steps
            for _ in range(steps):
                it.step()
            pipe.send((begun - start, (clock(device) - warm) / steps))
        elif kind == "profile":
            (batch,) = arguments
            it = contender(batch)
            it.train(lambda step: batches[batch])
            pipe.send(shares(lambda: it.train(lambda step: batches[batch]), device))
        elif kind == "memory":
            pipe.send(round(peak_memory(device) / 1e9, 2))
        give_back(device)


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
        """Ours and the tuned ones start with the allocator's settings, which our commands set for themselves; the shipped without."""
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = {}, []
        for name in names:
            here, there = context.Pipe()
            process = context.Process(
                target=serve, args=(there, name, width, device)
            )  # no daemon: it has workers of its own
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
            try:
                pipe.send(None)
            except ConnectionError:
                pass
        for process in self.processes:
            process.join(10)
            process.kill()


def with_ours(names: list[str]) -> tuple[str, ...]:
    """The contenders that were asked for, each once, and ours, which all are compared with."""
    return tuple(dict.fromkeys(["ours", *names]))


def ratios(seconds: dict[str, list[float]], about: dict[str, dict], ours: str = "ours") -> dict[str, dict]:
    """Seconds and, within a round, how many times as long as ours at equal FLOPs: {name: {"seconds", "ratio", "low", "high"}}.

    The networks are matched as far as their structures allow; what is left is divided out. One that failed when asked `about`
    itself has no row; without ours there is none.
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
    """Training from a folder of PNG pairs: {"batch", "packing_seconds", "rows": ratios with the share of time spent waiting}."""
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
    """The run in Markdown: seconds of ours and how many times as long the others take; memory; shares of the machine's limits."""
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
        f"{rate / limits['conv_tflops']:.0%} of this machine's own convolution in {limits['precision']} ({limits['conv_tflops']} TFLOP/s), "
        f"{rate / limits['matmul_tflops']:.0%} of its matrix product ({limits['matmul_tflops']}); "
        f"it copies {limits['copy_gbs']} GB/s."
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
        for place, name in enumerate(names):
            if name in table:
                color = "#0072B2" if name.startswith("ours") else "#E69F00" if name.endswith("tuned") else "#999999"
                axis.barh(place, table[name]["ratio"], color=color)
                axis.plot([table[name]["low"], table[name]["high"]], [place, place], color="black", linewidth=1)
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--width", type=int, default=32, help="channels at full resolution, a multiple of 32 (default: %(default)s)"
    )
    parser.add_argument("--batches", type=int, nargs="+", help="crops a step (default: 2 8 32, on a GPU also 256)")
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
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor()}, {torch.get_num_threads()} threads"
    )
    packages = {p: metadata.version(p) for p in ("diffusers", "denoising-diffusion-pytorch")}
    results = {
        "machine": where,
        "torch": torch.__version__,
        "packages": packages,
        "width": args.width,
        "rounds": args.rounds,
        "limits": machine_limits(device),
    }
    give_back(device)
    print(f"{where}: {results['limits']}", flush=True)
    names, out = with_ours(args.contenders), Path(args.out)
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


def processor() -> str:
    """The processor's name."""
    try:
        return next(
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    restart_with_allocator(*sys.argv)
    main()

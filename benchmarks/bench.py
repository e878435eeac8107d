"""Ours against the peers, in one run: training, sampling, memory, data. `make bench` installs the peers and runs it.

python benchmarks/bench.py [--device cuda] [--width 32] [--rounds 5] [--out benchmarks/results]

Every contender lives in a process of its own, so that a peak of memory is nobody else's; they take turns, round after
round, so that a slow minute of the machine meets all of them. What counts is the ratio to ours within a round, at equal FLOPs:
its median and its spread over the rounds. Writes bench.json, bench.md and bench.png.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from tinymsg.__main__ import ALLOCATOR
from tinymsg.training.runs import peak_memory


def clock(device: torch.device) -> float:
    """Seconds, once what was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine_limits(device: torch.device) -> dict[str, float]:
    """What this machine can do at best: bf16 matrix product and convolution (TFLOP/s), copying (GB/s); the best of 5."""

    def best(work, warmup: int = 2) -> float:
        seconds = []
        for _ in range(warmup + 5):
            start = clock(device)
            work()
            seconds.append(clock(device) - start)
        return min(seconds[warmup:])

    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(device, torch.bfloat16, memory_format=torch.channels_last)
    size = 32 if device.type == "cuda" else 8
    image = torch.randn(size, 64, 128, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    image = image.to(memory_format=torch.channels_last)
    flops = 3 * 2 * size * 128 * 128 * 64 * 64 * 9  # forward, and two backward passes of the same cost
    block = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    other = torch.empty_like(block)
    return {"matmul_tflops": round(2 * n**3 / best(lambda: a @ b) / 1e12, 3),
            "conv_tflops": round(flops / best(lambda: layer(image).sum().backward()) / 1e12, 3),
            "copy_gbs": round(2 * block.numel() * 4 / best(lambda: other.copy_(block)) / 1e9, 1)}  # fmt: skip


def serve(pipe, name: str, width: int, device_name: str) -> None:
    """A contender's process: does what it is asked for, and answers with seconds; ends at None."""
    from peers import Contender

    device = torch.device(device_name)
    batches, contenders = {}, {}

    def contender(batch: int) -> Contender:
        if batch not in contenders:
            contenders.clear()  # one at a time: its memory is not the next one's
            contenders[batch] = Contender(name, width, device, batch)
            generator = torch.Generator().manual_seed(0)
            batches[batch] = [(torch.rand(batch, 3, 128, 128, generator=generator) * 2 - 1).to(device) for _ in range(2)]
        return contenders[batch]

    while (request := pipe.recv()) is not None:
        kind, *arguments = request
        if kind == "about":
            it = contender(1)
            pipe.send({"parameters_M": round(sum(p.numel() for p in it.network.parameters()) / 1e6, 2), "gflop": it.gigaflops()})
        elif kind == "train":
            batch, steps = arguments
            it = contender(batch)
            start = clock(device)
            it.train(*batches[batch], steps)
            pipe.send((clock(device) - start) / steps)
        elif kind == "sample":
            height, wide, steps = arguments
            it = contender(1)
            x = (torch.rand(1, 3, height, wide, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
            start = clock(device)
            it.begin(x)
            begun = clock(device)
            for _ in range(steps):
                it.step()
            pipe.send((begun - start, (clock(device) - begun) / steps))
        elif kind == "memory":
            pipe.send(round(peak_memory(device) / 1e9, 2))


class Field:
    """All contenders, each behind a pipe; asked one at a time."""

    def __init__(self, names: tuple[str, ...], width: int, device: str):
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = {}, []
        for name in names:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, name, width, device), daemon=True)
            process.start()
            there.close()
            self.pipes[name] = here
            self.processes.append(process)

    def ask(self, name: str, *request):
        """The answer of one contender; the others wait. Raises EOFError if it died (out of memory)."""
        self.pipes[name].send(request)
        return self.pipes[name].recv()

    def rounds(self, request: tuple, rounds: int) -> dict[str, list]:
        """`rounds` answers of each to the same request, in turn, after one that does not count; a dead one has none."""
        answers = {name: [] for name in self.pipes}
        for turn in range(rounds + 1):
            for name in list(answers):
                try:
                    answer = self.ask(name, *request)
                except (EOFError, BrokenPipeError):
                    answers.pop(name)
                    continue
                if turn > 0:
                    answers[name].append(answer)
        return answers

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes.values():
            try:
                pipe.send(None)
            except BrokenPipeError:
                pass
        for process in self.processes:
            process.join(10)


def ratios(seconds: dict[str, list[float]], about: dict[str, dict], ours: str = "ours") -> dict[str, dict]:
    """Seconds and, within a round, how many times as long as ours at equal FLOPs: {name: {"seconds", "ratio", "low", "high"}}.

    The networks are matched as far as their structures allow; what is left is divided out.
    """
    table = {}
    for name, values in seconds.items():
        cost = about[name]["gflop"] / about[ours]["gflop"]
        within = sorted(v / o / cost for v, o in zip(values, seconds[ours], strict=True))
        table[name] = {"seconds": statistics.median(values), "ratio": statistics.median(within), "low": within[0], "high": within[-1]}
    return table


def measure(field: Field, batches: list[int], sizes: list[tuple[int, int]], rounds: int, say) -> dict:
    """Every measurement of one run."""
    results = {"about": {name: field.ask(name, "about") for name in field.pipes}, "train": {}, "sample": {}, "begin": {}}
    for batch in batches:
        results["train"][str(batch)] = ratios(field.rounds(("train", batch, 2 if batch < 32 else 1), rounds), results["about"])
        say(f"training, {batch} crops of 128x128: " + ", ".join(f"{n} x{r['ratio']:.2f}" for n, r in results["train"][str(batch)].items()))
    results["memory_training"] = {name: field.ask(name, "memory") for name in field.pipes}
    for height, wide in sizes:
        answers = field.rounds(("sample", height, wide, 2), rounds)
        size = f"{wide}x{height}"
        results["begin"][size] = {name: statistics.median(a for a, _ in values) for name, values in answers.items()}
        results["sample"][size] = ratios({name: [step for _, step in values] for name, values in answers.items()}, results["about"])
        say(f"one step at {size}: " + ", ".join(f"{n} x{r['ratio']:.2f}" for n, r in results["sample"][size].items()))
    return results


def markdown(results: dict) -> str:
    """The run as one Markdown table: seconds of ours, and how many times as long the others take."""
    about = results["about"]
    columns = [("train", b, f"training, {b} crops") for b in results["train"]] + [("sample", s, f"a step at {s}") for s in results["sample"]]
    lines = ["| | M parameters | GFLOP a crop | " + " | ".join(title for *_, title in columns) + " |", "|---" * (3 + len(columns)) + "|"]
    for name, facts in about.items():
        cells = []
        for kind, key, _ in columns:
            row = results[kind][key].get(name)
            cells.append("failed" if row is None else f"{row['seconds']:.3g} s" if name == "ours"
                         else f"{row['ratio']:.2f}x ({row['low']:.2f} to {row['high']:.2f})")  # fmt: skip
        lines.append(f"| {name} | {facts['parameters_M']} | {facts['gflop']:.1f} | " + " | ".join(cells) + " |")
    limits, batch = results["limits"], max(results["train"], key=int)
    rate = 3 * about["ours"]["gflop"] * int(batch) / results["train"][batch]["ours"]["seconds"] / 1e3
    lines += ["", f"{results['machine']}, PyTorch {results['torch']}, {results['rounds']} rounds: how many times as long as ours at equal FLOPs, median (least to most). Ours: "
              f"{int(batch) / results['train'][batch]['ours']['seconds']:.1f} crops a second at {batch}, {rate:.2f} TFLOP/s, "
              f"{rate / limits['conv_tflops']:.0%} of this machine's own convolution ({limits['conv_tflops']} TFLOP/s), "
              f"{rate / limits['matmul_tflops']:.0%} of its matrix product ({limits['matmul_tflops']}); it copies {limits['copy_gbs']} GB/s."]  # fmt: skip
    return "\n".join(lines)


def picture(results: dict, path: Path) -> None:
    """How many times as long the others take, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {f"training, {b} crops": results["train"][b] for b in results["train"]} | {f"a step at {s}": r for s, r in results["sample"].items()}
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.2), sharey=True, layout="constrained")
    names = list(results["about"])
    for axis, (title, table) in zip(axes, panels.items(), strict=True):
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


def main() -> None:
    from peers import CONTENDERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=32, help="channels at full resolution, a multiple of 32 (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", help="crops a step (default: 2 8 32, on a GPU also 256)")
    parser.add_argument("--sizes", nargs="+", default=["256x256", "1280x720"], metavar="WxH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--out", default="benchmarks/results", help="folder of bench.json, bench.md, bench.png (default: %(default)s)")
    args = parser.parse_args()
    device = torch.device(args.device)
    batches = args.batches or ([2, 8, 32, 256] if device.type == "cuda" else [2, 8, 32])
    sizes = [tuple(reversed([int(n) for n in size.split("x")])) for size in args.sizes]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads"
    packages = {p: metadata.version(p) for p in ("diffusers", "denoising-diffusion-pytorch")}
    results = {"machine": where, "torch": torch.__version__, "packages": packages, "width": args.width, "rounds": args.rounds,
               "limits": machine_limits(device)}  # fmt: skip
    print(f"{where}: {results['limits']}", flush=True)
    field = Field(tuple(args.contenders), args.width, args.device)
    try:
        results |= measure(field, batches, sizes, args.rounds, lambda line: print(line, flush=True))
    finally:
        field.close()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "bench.md").write_text(markdown(results) + "\n")
    picture(results, out / "bench.png")
    print(markdown(results))


def _processor() -> str:
    try:
        return next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ.update(ALLOCATOR)  # as the command line does: glibc reads it at start only; the peers get it too
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()

"""Quality per second: what a network has learnt after so many seconds of training, and what it asks of a picture.

python benchmarks/quality.py [--seconds 300 1200] [--content FOLDER] [--validation FOLDER] [--out benchmarks/results]

Each network is trained anew for each budget, with the library's own training, on the same pairs in the same order and
from the same seed; its learning rate falls along a cosine over the budget. Seconds are the processor's (all threads
together; on a GPU the device's), so that a busy machine disturbs little; the pairs are made outside of them. The same
run restores a 1280x720 picture with each network, and with two other libraries where they are installed (extra
`bench`). A row that quality.json has already is not measured again: an interrupted run goes on. Also writes quality.md
and quality.png.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from bench import ratios
from common import clock, place
from peers import Contender
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tinymsg.cli.allocator import restart_with_allocator
from tinymsg.data import DOMAINS, Batches, Contents, Pairs, SyntheticPairs, make_contents
from tinymsg.evaluate import TEST_SEED, VALIDATION_SEED, available, measure, summary
from tinymsg.machine import accelerator, atomic_write
from tinymsg.model import Model, Recipe, build_model, count_parameters
from tinymsg.sample import Setting, prepare, restore
from tinymsg.train import TrainState, fit
from tinymsg.unet import NO_FEATURES, Features, PixelNorm, conv, zeroed

SETTING = Setting("ancestral", 5, 0.99)  # of the diffusions; a regression takes one evaluation
RECIPE = Recipe().change(scales=(), content_count=400, crop=96, batch=8, lr=1e-3, warmup=50, ema=0.998)
METRICS = ("psnr", "lpips")
PEERS = ("diffusers", "denoising_diffusion_pytorch")
FOREVER = 10**9  # optimiser steps: the clock ends a training
SIDE = 192  # pixels of the crops that are scored
PICTURE = (720, 1280)
MPIX = PICTURE[0] * PICTURE[1] / 1e6


# --- the networks -----------------------------------------------------------------------------------------------


class GroupNorm(nn.GroupNorm):
    """The norm of version 0.1: one mean and variance for 16 channels and the whole picture, in its input's type."""

    def __init__(self, channels: int):
        super().__init__(next(g for g in range(max(1, channels // 16), 0, -1) if channels % g == 0), channels)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


def with_group_norm(model: Model) -> Model:
    """The model with every PixelNorm replaced by version 0.1's norm."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, PixelNorm):
                setattr(module, name, GroupNorm(child.normalized_shape[0]))
    return model


class NAFBlock(nn.Module):
    """NAFNet's block (Chen 2022, Fig. 3d): products of halves of the channels in the place of activations.

    Its channel attention weighs each channel by a mean over the whole picture: a tile, or a training crop, is weighed
    by its own mean. Tiles of NAFNet therefore differ from the whole picture however wide their margin.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm_1, self.expand_1 = PixelNorm(channels), nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = nn.Conv2d(channels, channels, 1)
        self.project_1 = nn.Conv2d(channels, channels, 1)
        self.norm_2, self.expand_2 = PixelNorm(channels), nn.Conv2d(channels, 2 * channels, 1)
        self.project_2 = nn.Conv2d(channels, channels, 1)
        self.scale_1, self.scale_2 = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.depthwise(self.expand_1(self.norm_1(h))).chunk(2, dim=1)
        out = a * b
        out = self.project_1(out * self.attention(out.mean(dim=(2, 3), keepdim=True)))
        h = h + out * self.scale_1
        a, b = self.expand_2(self.norm_2(h)).chunk(2, dim=1)
        return h + self.project_2(a * b) * self.scale_2


class NAFNet(nn.Module):
    """A UNet of such blocks: halved by strided convolutions, doubled by pixel-shuffle, skips are added.

    Called as the library's UNet; sees x alone. down, up: blocks of each scale; channels double with each halving.
    """

    def __init__(self, width: int = 32, down: tuple[int, ...] = (1, 1, 1, 1), middle: int = 1, up=(1, 1, 1, 1)):
        super().__init__()
        widths = [width * 2**k for k in range(len(down) + 1)]

        def blocks(channels: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))

        self.first, self.last = conv(3, width, dims=2), zeroed(conv(width, 3, dims=2))
        self.down = nn.ModuleList(blocks(c, n) for c, n in zip(widths, down, strict=False))
        self.halving = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:-1])
        self.middle = blocks(widths[-1], middle)
        self.doubling = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)) for c in widths[:0:-1]
        )
        self.up = nn.ModuleList(blocks(c, n) for c, n in zip(widths[-2::-1], up, strict=True))

    def forward(self, z_t: Tensor, x: Tensor, noise_level: Tensor, features: Features = NO_FEATURES) -> Tensor:
        h, skips = self.first(x), []
        for blocks, halve in zip(self.down, self.halving, strict=True):
            skips.append(h := blocks(h))
            h = halve(h)
        h = self.middle(h)
        for double, blocks in zip(self.doubling, self.up, strict=True):
            h = blocks(double(h) + skips.pop())
        return self.last(h)


def ours(kind: str, fold: int, widths: tuple[int, ...]) -> Model:
    return build_model(RECIPE.change(kind=kind, fold=fold, widths=widths).network)


def before(kind: str) -> Model:
    """The network of version 0.1."""
    return with_group_norm(ours(kind, 1, (32, 64, 128, 128)))


def paper(kind: str) -> Model:
    return ours(kind, 1, (32, 64, 128, 128))


def fold_2(kind: str) -> Model:
    return ours(kind, 2, (64, 128, 160))


def fold_4(kind: str) -> Model:
    return ours(kind, 4, (128, 192, 256))


def nafnet(kind: str) -> Model:
    """Half the published width and 16 blocks, not 28, at the fourth scale: a training step then costs what fold 2's
    does."""
    model = ours(kind, 1, (16,) * 5)  # sides become multiples of 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPE.training.seed)
        model.add_module("unet", NAFNet(16, down=(1, 1, 1, 16)))
    return model


@dataclass(frozen=True)
class Network:
    """build(kind) -> Model; kinds: as what it is trained."""

    build: Callable[[str], Model]
    kinds: tuple[str, ...]


NETWORKS = {
    "before": Network(before, ("regression", "diffusion")),
    "paper": Network(paper, ("regression",)),
    "fold 2": Network(fold_2, ("regression", "diffusion")),
    "fold 4": Network(fold_4, ("regression", "diffusion")),
    "nafnet": Network(nafnet, ("regression",)),
}


# --- training by the clock ----------------------------------------------------------------------------------------


def seconds_of(device: torch.device) -> float:
    """What has been spent so far: the processor's seconds, all threads together; of a GPU, time as it passes."""
    return time.process_time() if device.type == "cpu" else clock(device)


class TimedState(TrainState):
    """A training that ends after so many seconds. Its average of the weights has no more past than it has steps."""

    def __init__(self, model: Model, seconds: float, lr: float, device: torch.device):
        super().__init__(Recipe(model.config, RECIPE.change(lr=lr).training), device, model)
        self.seconds, self.spent = seconds, 0.0

    def learning_rate(self) -> float:
        """Linear warm-up in steps, half a cosine down to zero in seconds."""
        c = self.training
        return c.lr * min(1.0, (self.step + 1) / c.warmup) * 0.5 * (1 + math.cos(math.pi * self.spent / self.seconds))

    @torch.no_grad()
    def average(self) -> None:
        decay = min(self.training.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - decay)


def train(model: Model, pairs: Pairs, seconds: float, lr: float, device: torch.device) -> TimedState:
    """Train for so many seconds, those of making the pairs not counted."""
    state = TimedState(model, seconds, lr, device)
    make, start = Batches(pairs, state.training.batch, state.training.crop), 0.0

    def batches(step: int) -> tuple[Tensor, Tensor]:
        nonlocal start
        pair = make(step)
        start = seconds_of(device)
        return pair

    for _ in fit(state, batches, FOREVER):
        state.spent += seconds_of(device) - start
        if state.spent >= seconds:
            break
    return state


def score(model: Model | None, y0: Tensor, x: Tensor) -> dict[str, dict[str, float]]:
    """Mean PSNR and LPIPS, with intervals over the crops; of the blurry ones where there is no model."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for part, (truth, blurry) in enumerate(zip(y0.split(8), x.split(8), strict=True)):
        generator = torch.Generator(x.device).manual_seed(TEST_SEED + part)
        estimate = blurry if model is None else restore(model, blurry, SETTING, generator)
        for name, values in measure(estimate, truth, METRICS).items():
            found[name] += values
    return {name: summary(values) for name, values in found.items()}


# --- restoring a picture ------------------------------------------------------------------------------------------


def evaluation_of(model: Model, x: Tensor) -> Callable[[], None]:
    """One network evaluation of the whole picture x."""
    prepared = prepare(model.eval(), x)
    level = torch.full((1,), 0.5, device=x.device)

    def evaluate() -> None:
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=prepared.bf16):
            prepared.denoise(prepared.padded, level)

    return evaluate


def gigaflops(network: nn.Module, device: torch.device, side: int = 96) -> float:
    """Of one evaluation of a million pixels, as counted by PyTorch."""
    zeros, level = torch.zeros(1, 3, side, side, device=device), torch.full((1,), 0.5, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(zeros, zeros, level)
    return counter.get_total_flops() / 1e9 / side**2 * 1e6


def restoring(rounds: int, device: torch.device) -> dict:
    """Seconds of one evaluation of a 1280x720 picture: ours and the peers that are here, in turn, round after round.

    "ratio": how many times as long as `before` within a round; "at_equal_flops": the same over the ratio of operations.
    """
    x = torch.rand(1, 3, *PICTURE, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    peers = [name for name in PEERS if find_spec(name)]
    work, about = {}, {}
    for name, network in NETWORKS.items():
        model = network.build("regression").to(device).to(memory_format=torch.channels_last)
        about[name] = {"parameters_M": round(count_parameters(model) / 1e6, 2), "gflop": gigaflops(model, device)}
        work[name] = evaluation_of(model, x)
    for name in peers:
        peer = Contender(f"{name}, tuned", 32, device, 1)
        peer.begin(x)
        about[name] = {"parameters_M": round(count_parameters(peer.network) / 1e6, 2)}
        about[name]["gflop"] = gigaflops(peer.network, device)
        work[name] = peer.step
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(1 + rounds):  # the first warms up
        for name, evaluate in work.items():
            start = seconds_of(device)
            evaluate()
            if turn:
                seconds[name].append(seconds_of(device) - start)
    table = ratios(seconds, dict.fromkeys(work, {"gflop": 1.0}), "before")
    equal = ratios(seconds, about, "before")
    for name, row in table.items():
        row |= about[name] | {"at_equal_flops": equal[name]["ratio"]}
    return {"rounds": rounds, "missing": [name for name in PEERS if name not in peers], "rows": table}


# --- tables and picture -------------------------------------------------------------------------------------------


def seconds_a_mpix(results: dict, network: str, kind: str) -> tuple[int, float]:
    """(evaluations, seconds of all of them) of restoring a million pixels."""
    evaluations = SETTING.steps if kind == "diffusion" else 1
    return evaluations, evaluations * results["restoring"]["rows"][network]["seconds"] / MPIX


def markdown(results: dict) -> str:
    """The run in Markdown: scores by seconds of training, then the restoring of one picture."""
    settings, rows = results["settings"], results["rows"]
    budgets = sorted({row["budget"] for row in rows})
    lines = [
        "| | s per training step | evaluations | s per Mpix | "
        + " | ".join(f"PSNR, LPIPS after {budget:g} s" for budget in budgets)
        + " |",
        "|---" * (4 + len(budgets)) + "|",
        f"| blurry | | | | {' | '.join([cell(results['blurry'])] * len(budgets))} |",
    ]
    found = {(row["network"], row["kind"], row["budget"]): row for row in rows}
    for network, kind in dict.fromkeys((row["network"], row["kind"]) for row in rows):
        evaluations, seconds = seconds_a_mpix(results, network, kind)
        cells = [cell(found[key]["scores"]) if (key := (network, kind, b)) in found else "-" for b in budgets]
        longest = max((row for key, row in found.items() if key[:2] == (network, kind)), key=lambda row: row["budget"])
        step = longest["spent"] / longest["steps"]
        lines.append(f"| {network}, {kind} | {step:.3f} | {evaluations} | {seconds:.2f} | {' | '.join(cells)} |")
    lines += [
        "",
        "One evaluation of a whole picture of 1280x720:",
        "",
        "| | M parameters | TFLOP a Mpix | seconds | times as long as `before` | at equal FLOPs |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results["restoring"]["rows"].items():
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['at_equal_flops']:.2f}"
        size = f"{row['parameters_M']} | {row['gflop'] / 1e3:.2f}"
        lines.append(f"| {name} | {size} | {row['seconds']:.2f} | {ratio} |")
    missing = results["restoring"]["missing"]
    lines += [
        "",
        f"{settings['machine']}, PyTorch {settings['torch']}. Trained on {settings['pairs']}; scored on "
        f"{settings['validation']}. One training run each: differences of a few hundredths may be chance. "
        f"{results['restoring']['rounds']} rounds, median (least to most)."
        + (f" Not installed: {' and '.join(missing)}." if missing else ""),
    ]
    return "\n".join(lines)


def cell(scores: dict) -> str:
    return f"{scores['psnr']['mean']:.2f}, {scores['lpips']['mean']:.3f}"


COLORS = dict(zip(NETWORKS, ("#777777", "#000000", "#0072B2", "#D55E00", "#009E73"), strict=True))


def picture(results: dict, path: Path) -> None:
    """LPIPS against seconds a million pixels: a dot for each network and budget, larger after more training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    rows = sorted(results["rows"], key=lambda row: row["budget"])
    budgets = sorted({row["budget"] for row in rows})
    for network, kind in dict.fromkeys((row["network"], row["kind"]) for row in rows):
        _, x = seconds_a_mpix(results, network, kind)
        mine = [row for row in rows if (row["network"], row["kind"]) == (network, kind)]
        lpips = [row["scores"]["lpips"]["mean"] for row in mine]
        axes.plot([x] * len(mine), lpips, color=COLORS[network], linewidth=1)
        for row, y in zip(mine, lpips, strict=True):
            marker, size = "o" if kind == "regression" else "D", 4 + 3 * budgets.index(row["budget"])
            axes.plot(x, y, marker, color=COLORS[network], markersize=size)
            axes.annotate(f"{row['budget']:g}", (x, y), (7, 0), textcoords="offset points", fontsize=7, va="center")
        below = {"xytext": (0, -10), "textcoords": "offset points", "ha": "center", "va": "top"}
        label = f"{network}, {kind}"
        axes.annotate(label, (x, min(lpips)), fontsize=8, rotation=90, color=COLORS[network], **below)
    axes.axhline(results["blurry"]["lpips"]["mean"], color="black", linewidth=1, linestyle="--")
    beside = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
    axes.annotate("blurry", (1, results["blurry"]["lpips"]["mean"]), fontsize=8, **beside)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.45 * (high - low), high)  # room for the names
    axes.margins(x=0.1)
    axes.set_xlabel("seconds of restoring a million pixels; beside the dots: seconds of training")
    axes.set_ylabel("LPIPS (lower is better)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# --- one run ------------------------------------------------------------------------------------------------------


def contents_of(names: list[str]) -> Contents:
    """The sharp pictures of all of these: names of contents, or folders."""
    parts = [make_contents(name, RECIPE.training.content_count, 0) for name in names]
    return Contents([image for part in parts for image in part.images], " and ".join(part.name for part in parts))


def still_to_do(results: dict, budgets: list[float], networks: list[str]) -> list[tuple[float, str, str]]:
    """(budget, network, kind) of what has no row yet, the short trainings first."""
    done = {(row["budget"], row["network"], row["kind"]) for row in results["rows"]}
    wanted = [(b, name, kind) for b in sorted(budgets) for name in networks for kind in NETWORKS[name].kinds]
    return [one for one in wanted if one not in done]


def earlier(path: Path, settings: dict) -> dict:
    """The results of an earlier run, or new ones. Raises: ValueError for those of other settings."""
    if not path.exists():
        return {"settings": settings, "rows": []}
    results = json.loads(path.read_text())
    if other := [name for name in settings if results["settings"].get(name) != settings[name]]:
        raise ValueError(
            f"{path} was measured with another {' and '.join(other)}: move it away, or give another folder as --out"
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality per second of training and of restoring.")
    parser.add_argument("--device", default=str(accelerator()))
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: %(default)s)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[300], help="budgets of training (default: 300)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    # Of "everyday", with its noise and compression, a network learns next to nothing in minutes
    parser.add_argument("--domain", default="gopro_like", choices=DOMAINS, metavar="NAME")
    parser.add_argument(
        "--content", nargs="+", default=["scenes"], help="sharp pictures to learn from: names, or folders"
    )
    parser.add_argument("--validation", nargs="+", default=["photos"], help="others, to be scored on")
    parser.add_argument("--crops", type=int, default=48, help="of 192 pixels to be scored on (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=RECIPE.training.lr, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of restoring a picture (default: %(default)s)")
    parser.add_argument("--out", default="benchmarks/results", help="folder of quality.json, .md and .png")
    args = parser.parse_args()
    device, out = torch.device(args.device), Path(args.out)
    torch.set_num_threads(args.threads)
    if reasons := available(METRICS)[1]:
        parser.error("; ".join(reasons.values()))
    pairs = SyntheticPairs(contents_of(args.content), args.domain, 0, device)
    others = SyntheticPairs(contents_of(args.validation), args.domain, VALIDATION_SEED, device)
    settings = {"machine": place(device), "torch": torch.__version__, "pairs": pairs.name, "lr": args.lr}
    settings["validation"] = f"{args.crops} crops of {SIDE} pixels of {others.name}"
    try:
        results = earlier(out / "quality.json", settings)
    except ValueError as error:
        parser.error(str(error))

    def keep(line: str) -> None:
        print(line, flush=True)
        with atomic_write(out / "quality.json") as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n")

    if results.get("restoring", {}).get("missing") != [name for name in PEERS if not find_spec(name)]:
        results["restoring"] = restoring(args.rounds, device)
        table = results["restoring"]["rows"]
        keep("1280x720: " + ", ".join(f"{name} x{row['ratio']:.2f}" for name, row in table.items()))
    y0, x = others.crops(torch.arange(args.crops), SIDE)
    results["blurry"] = score(None, y0, x)
    for budget, name, kind in still_to_do(results, args.seconds, args.networks):
        state = train(NETWORKS[name].build(kind), pairs, budget, args.lr, device)
        row = {"network": name, "kind": kind, "budget": budget, "steps": state.step, "spent": round(state.spent, 2)}
        results["rows"].append(row | {"scores": score(state.ema_model, y0, x)})
        keep(f"{name}, {kind}: {state.step} steps in {budget:g} s; PSNR, LPIPS {cell(results['rows'][-1]['scores'])}")
    (out / "quality.md").write_text(markdown(results) + "\n")
    picture(results, out / "quality.png")
    print(markdown(results))


if __name__ == "__main__":
    restart_with_allocator(*sys.argv)
    main()

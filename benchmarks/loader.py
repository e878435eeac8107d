"""The loader: crops a second of each source of pairs, and the loader's share of a training step of the profile `full`.

python benchmarks/loader.py [--device cuda] [--batch 256] [--pairs 32] [--data gopro --root data] [--out loader.json]

Without --data, a stand-in is made: PNG pairs of 1280x720, about as large as GoPro's, packed by the library's own
packer. A batch is what training gets: crops turned, as floats, on the device. The share is the time of one batch,
waited for, divided by the time of a whole step (with that batch made in it) at the same batch and crop; on a GPU,
where the next batch is prepared while the last step still runs, the cost that remains is smaller still.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import clock, place
from PIL import Image

from tinymsg.cli.allocator import restart_with_allocator
from tinymsg.data import Batches, Pair, Pairs, SyntheticPairs, scene_contents
from tinymsg.datasets.folders import ListedPairs, folder_pairs
from tinymsg.datasets.layouts import DATASETS, find_pairs
from tinymsg.datasets.packed import PackedPairs, packed_folder
from tinymsg.datasets.packing import pack
from tinymsg.machine import accelerator
from tinymsg.model import Recipe
from tinymsg.scenes import render_scenes
from tinymsg.train import TrainState, fit
from tinymsg.training.parallel import training_network
from tinymsg.training.profiles import profile

GOPRO_PNG = 9.5e9 / (3 * 3214)  # bytes a picture: the archive has three of each pair
SIZE = (720, 1280)


def make_pictures(folder: Path, count: int) -> list[Pair]:
    """`count` PNG pairs: enlarged scenes under a camera's noise; the blurry one averaged over 15 pixels."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        scene = F.interpolate(render_scenes(torch.tensor([i]), 320, seed=0), (SIZE[1], SIZE[1]), mode="bicubic")
        scene = scene[..., : SIZE[0], :]
        blurry = F.avg_pool2d(F.pad(scene, (7, 7, 0, 0), mode="replicate"), (1, 15), stride=1)
        for side, image in (("sharp", scene), ("blur", blurry)):
            noisy = image + 0.003 * torch.randn(image.shape, generator=generator)
            pixels = (noisy[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            (folder / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / side / f"{i:06d}.png")
    return folder_pairs(folder)


def seconds(call, device: torch.device, warmup: int, repeats: int) -> list[float]:
    """Lower quartile, median, upper quartile of the seconds of call(0), call(1), ..."""
    times = []
    for number in range(warmup + repeats):
        start = clock(device)
        call(number)
        times.append(clock(device) - start)
    return statistics.quantiles(times[warmup:], n=4)


def sources(pairs: list[Pair], folder: Path, device: torch.device) -> dict[str, Pairs]:
    """Everything that gives crops, by the name of its row."""
    return {
        "packed, memory-mapped": PackedPairs(folder, device=device, resident=False),
        "packed, resident": PackedPairs(folder, device=device, resident=True),
        "PNG pairs, decoded": ListedPairs(pairs, "PNG", device=device),
        "synthetic (gopro_like)": SyntheticPairs(scene_contents(64, size=256), "gopro_like", device=device),
    }


def step_seconds(recipe: Recipe, batches: Batches, device: torch.device, repeats: int) -> list[float]:
    """Quartiles of the seconds of a whole optimiser step, its batch included."""
    state = TrainState(recipe, device)
    steps = fit(state, batches, network=training_network(state))
    return seconds(lambda number: next(steps), device, warmup=1 if device.type == "cpu" else 10, repeats=repeats)


def measure(args: argparse.Namespace, device: torch.device, recipe: Recipe, work: Path) -> dict:
    """All rows, printed as they come."""
    c = recipe.training
    if args.data:
        pairs = find_pairs(args.data, args.root, args.split, args.blur)
        folder = packed_folder(args.data, args.split, args.root)
    else:
        pairs, folder = make_pictures(work / "pictures", args.pairs), work / "packed"
    png = statistics.mean(path.stat().st_size for pair in pairs for path in pair[1:])
    start = time.perf_counter()
    manifest = pack(pairs, folder, args.data or "stand-in", args.split, args.blur)
    packing = time.perf_counter() - start
    print(
        f"{len(pairs)} pairs, frames {manifest['shape'][3]}x{manifest['shape'][2]}, {png / 1e6:.2f} MB a PNG "
        f"(GoPro: {GOPRO_PNG / 1e6:.2f}); packed in {packing:.1f} s, or there already"
    )
    step = step_seconds(recipe, Batches(PackedPairs(folder, device=device), c.batch, c.crop), device, args.steps)
    print(
        f"a step of {c.batch} crops {c.crop}x{c.crop}: {step[1]:.3f} s\n\n"
        f"{'source':<28} {'crops/s':>9} {'ms/crop':>8} {'of a step':>10}"
    )
    rows = {}
    for name, source in sources(pairs, folder, device).items():
        batches = Batches(source, c.batch, c.crop)
        quartiles = seconds(batches, device, warmup=1, repeats=5)
        rows[name] = {
            "crops_per_second": c.batch / quartiles[1],
            "seconds_quartiles": quartiles,
            "share": quartiles[1] / step[1],
        }
        print(
            f"{name:<28} {rows[name]['crops_per_second']:9.0f} {1e3 * quartiles[1] / c.batch:8.3f} "
            f"{rows[name]['share']:10.2%}",
            flush=True,
        )
    return {
        "pairs": len(pairs),
        "png_bytes": png,
        "packing_seconds": packing,
        "batch": c.batch,
        "crop": c.crop,
        "compile": c.compile,
        "step_seconds_quartiles": step,
        "rows": rows,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=str(accelerator()))
    parser.add_argument("--batch", type=int, help="crops per step (default: 16 on the CPU, the profile's own on a GPU)")
    parser.add_argument("--crop", type=int, default=128, help="pixels (default: %(default)s, the profile's)")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of the stand-in (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="timed steps (default: 5 on the CPU, 50 on a GPU)")
    parser.add_argument(
        "--data", choices=tuple(DATASETS), help="a real data set instead of the stand-in; packed if it is not yet"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--blur", default="blur")
    parser.add_argument("--root", default="data", help="where the data sets lie (default: %(default)s)")
    parser.add_argument("--out", help="also write the JSON to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = device.type != "cpu"
    args.steps = args.steps or (50 if gpu else 5)
    recipe = profile("full")
    # Compiling takes minutes on a CPU, and would not change what a batch costs
    recipe = recipe.change(
        batch=args.batch or (recipe.training.batch if gpu else 16),
        crop=args.crop,
        compile=recipe.training.compile if gpu else "",
    )
    where = place(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{where}, torch {torch.__version__}, load {load:.1f} before the start")
    with tempfile.TemporaryDirectory() as work:
        results = measure(args, device, recipe, Path(work))
    text = json.dumps({"where": where, "torch": torch.__version__, "load": load} | results, indent=1)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    restart_with_allocator(*sys.argv)
    main()

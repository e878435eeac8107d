"""Peak memory of restoring pictures of growing size in tiles: the whole process, with everything that it has loaded.

python benchmarks/memory.py [--sizes 2000x1500 4000x3000 8000x6000] [--tile PX] [--out memory.json]

Each size is a process of its own. What a pixel more takes is told from one row to the next. With --tile 0 and a small
size, "a pixel" is what the network takes for each pixel of a tile: the constants of restoring/tiles.py.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from common import clock, place

from tinymsg.cli.allocator import ALLOCATOR
from tinymsg.machine import accelerator, use_bf16
from tinymsg.model import build_model, model_card, pretrained, pretrained_names
from tinymsg.restoring.tiles import choose_tile, restore_large
from tinymsg.sample import Setting
from tinymsg.training.profiles import profile
from tinymsg.training.runs import peak_memory

COLUMNS = ("size", "precision", "tile", "before_GB", "peak_GB", "bytes_a_pixel", "growth", "seconds_a_pass")
HEAD = "{:<12} {:>9} {:>5} {:>9} {:>8} {:>13} {:>7} {:>14}"


def measure(name: str, precision: str, size: list[int], tile: int | None, samples: int, device: torch.device) -> dict:
    """Peak memory of this process, and seconds, for one picture of two steps, begun as `deblur` begins."""
    width, height = size
    shipped = name in pretrained_names()
    model = pretrained(name, device) if shipped else build_model(profile(name).network).to(device)
    default = model_card(name).get("quality", {}).get("default", {}) if shipped else {}
    setting = Setting(**default | {"steps": 2, "samples": samples})
    model.config = replace(model.config, precision=precision)
    x = torch.empty(3, height, width, dtype=torch.float16)
    for row in x.unbind(1):  # no larger array on the way
        row.uniform_(-1, 1)
    cpu = torch.device("cpu")
    before, start = peak_memory(cpu), clock(device)
    tile = choose_tile(model.eval(), height, width, device) if tile is None else tile
    restore_large(model, x, setting, 0, tile, device)
    seconds, peak = clock(device) - start, peak_memory(cpu)
    return {
        "model": name,
        "size": f"{width}x{height}",
        "precision": "bf16" if use_bf16(precision, device) else "fp32",
        "tile": tile,
        "samples": samples,
        "start": setting.start,
        "before_GB": round(before / 1e9, 3),
        "peak_GB": round(peak / 1e9, 3),
        "bytes_a_pixel": round((peak - before) / (width * height), 1),
        "growth": None,  # bytes for each pixel more than in the row before
        "seconds_a_pass": round(seconds / (2 * samples + bool(setting.start)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = ["2000x1500", "4000x3000", "8000x6000"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="WxH", help="growing")
    parser.add_argument("--model", default="everyday-plain", help="shipped weights, or a profile with random ones")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--tile", type=int, metavar="PX", help="0 is the whole picture (default: by free memory)")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--device", default=str(accelerator()))
    parser.add_argument("--out", help="also write the JSON to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.child:
        print(json.dumps(measure(args.model, args.precision, json.loads(args.child), args.tile, args.samples, device)))
        return
    where = place(device)
    print(f"{where}, torch {torch.__version__}, {args.model}, samples: {args.samples}")
    print(HEAD.format(*COLUMNS))
    rows = []
    for size in args.sizes:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", json.dumps([int(n) for n in size.split("x")])]
        done = subprocess.run(command, env=os.environ | ALLOCATOR, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{size}: exit status {done.returncode}", flush=True)
            continue
        row = json.loads(done.stdout)
        if rows:
            more = pixels(row) - pixels(rows[-1])
            row["growth"] = round(1e9 * (row["peak_GB"] - rows[-1]["peak_GB"]) / more, 1)
        rows.append(row)
        print(HEAD.format(*(str(row[column]) for column in COLUMNS)), flush=True)
    if args.out:
        text = json.dumps({"where": where, "torch": torch.__version__, "rows": rows}, indent=1)
        Path(args.out).write_text(text + "\n")


def pixels(row: dict) -> int:
    """Of a row's picture."""
    width, height = row["size"].split("x")
    return int(width) * int(height)


if __name__ == "__main__":
    main()

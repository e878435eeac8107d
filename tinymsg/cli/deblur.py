"""deblur: pictures or folders in, pictures out."""

import argparse
import sys
from pathlib import Path

from .shared import common, load_weights, pick_device, positive, share


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "deblur",
        help="deblur pictures or folders of pictures",
        epilog="Example: tinymsg deblur photo.jpg -o sharp.png. The shipped weights are small. They are good for short "
        "and smooth motion blur of about 3 to 11 pixels, as of a moving hand in daylight; longer shake they leave "
        "nearly as it is, and fine noise or night lights may come out slightly worse than they went in. --samples 4 "
        "is smoother and safer.",
    )
    option = sub.add_argument
    option("inputs", nargs="+", metavar="IN", help="pictures, or folders of them")
    option("-o", "--output", required=True, metavar="OUT", help="a picture for one input, else a folder")
    common(sub, "weights", default="photos-guided")
    option("--seed", type=int, default=0, metavar="N", help="the same seed gives the same picture (default: 0)")
    option("--overwrite", action="store_true", help="replace output files that exist")
    common(sub, "device")
    title = "the sampler's setting, by default the weights' own best, but one sample"
    option = sub.add_argument_group(title).add_argument
    option("--steps", type=positive, metavar="N", help="network evaluations a sample: more is sharper and slower")
    option("--max-noise", type=share, metavar="B", help="largest noise step, between 0 and 1")
    option("--grid", metavar="NAME", help="noise levels between the ends: linear or cosine")
    option("--sampler", metavar="NAME", help="how noise is taken away: ancestral, ddim or dpm_solver")
    option("--samples", type=positive, default=1, metavar="N", help="draws to average: more is smoother and safer")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..data import ImageError
    from ..sample import Setting

    jobs = _jobs([Path(p) for p in args.inputs], Path(args.output))
    device = pick_device(args.device)
    model, card = load_weights(args.weights, device)
    asked = {name: getattr(args, name) for name in ("sampler", "steps", "max_noise", "grid", "samples")}
    if model.config.kind == "regression":
        asked["steps"] = 1  # whatever is asked for
    setting = Setting(**card.get("setting", {}) | {name: value for name, value in asked.items() if value is not None})
    failed = []
    for source, target in jobs:
        try:
            if target.exists() and not args.overwrite:
                raise ImageError(f"{target} exists; --overwrite replaces it")
            _deblur(model, source, target, setting, args.seed, device)
            print(f"{source} -> {target}")
        except ImageError as error:
            failed.append(str(error))
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr)
    if len(jobs) > 1:
        print(f"{len(jobs) - len(failed)} of {len(jobs)} pictures deblurred")
    return 1 if failed else 0


def _deblur(model, source: Path, target: Path, setting, seed: int, device) -> None:
    """One picture; raises ImageError, one sentence, if it cannot be used or memory runs out."""
    import torch
    from tqdm import tqdm

    from ..data import ImageError, read_image, to_display, to_model, write_image
    from ..machine import out_of_memory
    from ..sample import restore

    size = ""
    try:
        x = to_model(read_image(source))[None]
        size = f" for {x.shape[-1]}x{x.shape[-2]} pixels"
        x = x.to(device)
        check_memory(source, x, model.config)
        # Seeded a file: a picture's result does not depend on which others were given
        generator = torch.Generator(device).manual_seed(seed % 2**64)
        with tqdm(desc=source.name, unit="step", leave=False) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            y0_hat = restore(model, x, setting, generator, progress=advance)
        write_image(target, to_display(y0_hat[0]), like=source)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ImageError(f"{source}: not enough memory on {device}{size}; make it smaller") from None


def _jobs(inputs: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """(source, target) of every picture. One file to one file, or anything into a folder."""
    from ..data import IMAGE_SUFFIXES, picture_files

    if len(inputs) == 1 and not inputs[0].is_dir() and output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        return [(inputs[0], output)]
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; several pictures or a folder need an output folder")
    jobs: dict[Path, Path] = {}  # target: source
    for path in inputs:
        found = picture_files(path, recursive=True) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"no pictures ({', '.join(IMAGE_SUFFIXES)}) in the folder {path}")
        for source in found:
            name = source.relative_to(path) if path.is_dir() else Path(path.name)
            target = output / (name if name.suffix.lower() in IMAGE_SUFFIXES else f"{name}.png")
            if target in jobs:
                raise ValueError(f"two inputs would both be written to {target}; deblur them in two calls")
            jobs[target] = source
    return [(source, target) for target, source in jobs.items()]


# Peak of a restoration per pixel and channel of the first level, above what the process holds before it. Measured on
# the CPU in bf16: 41 (the shipped networks) and 48 (the full ones); in fp32 at 1280x720: 54
_BYTES_PER_PIXEL_AND_CHANNEL = {True: 50, False: 65}


def check_memory(source: Path, x, config) -> None:
    """Refuse, before Linux would kill us, a picture that cannot fit; a GPU says so by itself. Raises: ImageError."""
    from ..data import ImageError
    from ..machine import use_bf16

    table = Path("/proc/meminfo")
    if x.device.type != "cpu" or not table.exists():
        return
    height, width = x.shape[-2:]
    need = height * width * config.widths[0] * _BYTES_PER_PIXEL_AND_CHANNEL[use_bf16(config.precision, x.device)]
    free = int(table.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    if need > free:
        what = f"{width}x{height} pixels need about {need / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
        raise ImageError(f"{source}: {what}; make the picture smaller")

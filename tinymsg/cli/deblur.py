"""deblur: pictures or folders in, pictures out."""

import argparse
import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from .shared import at_least, common, pick_device, positive, share

QUALITIES = ("fast", "default", "best")


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "deblur",
        help="deblur pictures or folders of pictures",
        epilog="Example: tinymsg deblur photo.jpg -o sharp.png. The shipped weights are small. They learnt "
        "on blur of up to 40 pixels with noise and compression. What is sharp they leave alone, a background out of "
        "focus they may sharpen, long blur they lessen rather than undo. --preview shows in seconds what to expect.",
    )
    option = sub.add_argument
    option("inputs", nargs="+", metavar="IN", help="pictures, or folders of them")
    option("-o", "--output", required=True, metavar="OUT", help="a picture for one input, else a folder")
    option("--quality", choices=QUALITIES, default="default", help="from quick to slow (default: default)")
    preview = "only write OUT-preview.png: the middle of the first picture in each quality, with the seconds"
    option("--preview", action="store_true", help=preview)
    common(sub, "weights", default="everyday-plain")
    option("--seed", type=int, default=0, metavar="N", help="the same seed gives the same picture (default: 0)")
    option("--overwrite", action="store_true", help="replace output files that exist")
    tile = "side of the tiles that the network sees at once, 0 for the whole picture (default: what fits the memory)"
    option("--tile", type=at_least(0), metavar="PX", help=tile)
    common(sub, "device")
    title = "for experts: parts of the sampler's setting, instead of --quality's"
    option = sub.add_argument_group(title).add_argument
    option("--steps", type=positive, metavar="N", help="evaluations per sample: more is slower and often sharper")
    option("--max-noise", type=share, metavar="B", help="largest noise step, between 0 and 1")
    option("--grid", metavar="NAME", help="noise levels between the ends: linear or cosine")
    option("--sampler", metavar="NAME", help="how noise is taken away: ancestral, ddim or dpm_solver")
    option("--samples", type=positive, metavar="N", help="draws to average: more is smoother and safer")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..data import ImageError
    from ..restoring.files import check_target, photo_size

    jobs = jobs_of([Path(p) for p in args.inputs], args.output)
    if args.preview:
        source, target = jobs[0]
        jobs = [(source, target.with_name(f"{target.stem}-preview.png"))]
    failed, ready = [], []
    for source, target in jobs:
        try:
            check_target(target, args.overwrite)
            ready.append((source, target))
        except ImageError as error:
            failed.append(str(error))
    restore = restorer(args)
    pixels = {source: w * h for source, _ in ready for w, h in [photo_size(source)]}
    # Of all pictures together, by their pixels; smoothing=0: the rate is that of the whole run
    layout = "{desc}|{bar}| {percentage:3.0f} %, {elapsed} gone, {remaining} left"
    try:
        with tqdm(total=sum(pixels.values()), bar_format=layout, smoothing=0, leave=False, disable=None) as bar:
            for source, target in ready:
                before = bar.n
                bar.set_description(source.name)

                def advance(done: int, total: int, before=before, area=pixels[source]) -> None:
                    bar.update(before + area * done / total - bar.n)

                try:
                    work = _preview if args.preview else partial(deblur_one, overwrite=args.overwrite)
                    with told(source):
                        written, notes = work(restore, source, target, args.quality, advance)
                    bar.write("; ".join([f"{source} -> {written}", *notes]))
                except ImageError as error:
                    failed.append(str(error))
                advance(1, 1)
    finally:  # after Ctrl-C, too
        for sentence in failed:
            print(f"failed: {sentence}", file=sys.stderr)
    if len(jobs) > 1:
        print(f"{len(jobs) - len(failed)} of {len(jobs)} pictures deblurred")
    return 1 if failed else 0


def restorer(args: argparse.Namespace) -> Callable:
    """restore(source, photo, quality, advance=None) -> (3, h, w): the weights loaded, the options filled in."""
    from ..data import ImageError
    from ..machine import out_of_memory
    from ..model import model_card, pretrained
    from ..restoring import files, tiles

    device = pick_device(args.device)
    model, card = pretrained(args.weights, device), model_card(args.weights)
    asked = {name: getattr(args, name) for name in ("sampler", "steps", "max_noise", "grid", "samples")}
    if model.config.kind == "regression":
        asked["steps"] = 1  # whatever is asked for
    asked = {name: value for name, value in asked.items() if value is not None}
    used = QUALITIES if args.preview else (args.quality,)
    settings = {quality: replace(quality_setting(card, quality), **asked) for quality in used}

    def restore(source: Path, photo, quality: str, advance=None):
        try:
            x = files.network_input(photo)
            # Seeded per file: a picture's result does not depend on which others were given
            return tiles.restore_large(model, x, settings[quality], args.seed, args.tile, device, advance)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            h, w, _ = photo.pixels.shape
            said = f"not enough memory on {device} for {w}x{h} pixels; make it smaller, or give a --tile"
            said = str(error) if isinstance(error, MemoryError) and error.args else said  # a sentence of the tiles'
            raise ImageError(f"{source}: {said}") from None

    return restore


def quality_setting(card: dict, quality: str):
    """The Setting that a --quality means with these weights.

    Their card says it under "quality". If it does not: the card's one setting with one sample, in one step, or with
    four samples.
    """
    from ..sample import Setting

    changes = {"fast": {"steps": 1, "samples": 1}, "default": {"samples": 1}, "best": {"samples": 4}}[quality]
    return Setting(**card.get("quality", {}).get(quality) or card.get("setting", {}) | changes)


def deblur_one(
    restore: Callable, source: Path, target: Path, quality: str, advance: Callable, overwrite: bool = True
) -> tuple[Path, list[str]]:
    """One picture: where it was written, and notes; raises ImageError, one sentence, if it cannot be used."""
    from ..restoring import files

    photo = files.open_photo(source)
    files.put_back(photo, restore(source, photo, quality, advance))
    if target.exists() and not overwrite:  # it was not there before the work
        photo.notes.append(f"because {target} is there by now")
        target = next(p for n in count(2) if not (p := target.with_stem(f"{target.stem}-{n}")).exists())
    return files.save_photo(target, photo)


@contextmanager
def told(source: Path) -> Iterator[None]:
    """Memory or disk that runs out because of a picture is one more reason why it cannot be used: an ImageError."""
    from ..data import ImageError

    try:
        yield
    except MemoryError:
        raise ImageError(f"{source}: not enough memory; make it smaller") from None
    except OSError as error:
        where = f" in {tempfile.gettempdir()}; TMPDIR names another folder" if error.errno == errno.ENOSPC else ""
        raise ImageError(f"{source}: {error.strerror or error}{where}") from None


# --- which files --------------------------------------------------------------------------------------------


def jobs_of(inputs: list[Path], out: str) -> list[tuple[Path, Path]]:
    """(source, target) of every picture. One file to one file, or anything into a folder."""
    from ..data import picture_files
    from ..restoring.files import FORMS, READABLE, heic

    output = Path(out)
    to_folder = output.is_dir() or not output.suffix or out.endswith((os.sep, "/"))
    if len(inputs) == 1 and not inputs[0].is_dir() and not to_folder:
        return [(inputs[0], output)]
    if (output.exists() and not output.is_dir()) or (output.suffix.lower() in FORMS and not to_folder):
        raise ValueError(f"{output} is a file's name; several pictures or a folder need an output folder")
    same = {suffix for suffix, form in FORMS.items() if form.name != "HEIF" or heic()}  # others become PNG
    jobs: dict[Path, Path] = {}  # target: source
    for path in inputs:
        found = picture_files(path, True, READABLE) if path.is_dir() else [path]
        if path.is_dir() and path.resolve() in output.resolve().parents:  # what an earlier call has written is no input
            found = [source for source in found if output.resolve() not in source.resolve().parents]
        if not found:
            raise ValueError(f"no pictures ({', '.join(READABLE)}) in the folder {path}")
        for source in found:
            name = source.relative_to(path) if path.is_dir() else Path(path.name)
            target = output / (name if name.suffix.lower() in same else f"{name}.png")
            if target in jobs:
                raise ValueError(f"two inputs would both be written to {target}; deblur them in two calls")
            jobs[target] = source
    return [(source, target) for target, source in jobs.items()]


# --- the preview --------------------------------------------------------------------------------------------

_PART, _SHOWN, _GAP, _TEXT = 256, 512, 16, 22  # pixels: of the picture, of the sheet, between panels, letters' height


def _preview(restore: Callable, source: Path, target: Path, quality: str, advance: Callable) -> tuple[Path, list[str]]:
    """Write a sheet of a picture's middle: as it is, and in each quality with its seconds."""
    from ..restoring.files import Photo, open_photo, put_back, save_photo

    whole = open_photo(source)
    h, w, _ = whole.pixels.shape
    middle = tuple(slice(max(side - _PART, 0) // 2, max(side - _PART, 0) // 2 + _PART) for side in (h, w))
    alpha = None if whole.alpha is None else whole.alpha[middle]
    parts = [Photo(whole.pixels[middle].copy(), alpha) for _ in ("as it is", *QUALITIES)]
    labels = [f"as it is ({w} x {h} pixels)"]
    restore(source, parts[0], QUALITIES[0])  # the first call is slower than those that follow
    for number, (name, part) in enumerate(zip(QUALITIES, parts[1:], strict=True)):
        start = time.perf_counter()
        put_back(part, restore(source, part, name))
        seconds = time.perf_counter() - start
        share = part.pixels.size / whole.pixels.size
        same = number > 0 and (part.pixels == parts[number].pixels).all()
        said = f"{_duration(seconds)}; whole picture about {_duration(seconds / share)}"
        labels.append(f"{name}: with these weights as {QUALITIES[number - 1]}" if same else f"{name}: {said}")
        advance(number + 1, len(QUALITIES))
    profile = {name: value for name, value in whole.metadata.items() if name == "icc_profile"}
    return save_photo(target, Photo(_sheet(f"{source.name}, the middle", labels, parts), metadata=profile))


def _sheet(title: str, labels: list[str], parts: list):
    """(h, w, 3) uint8: photos of one size two by two, each under its label."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from ..restoring.files import eight_bits

    h, w, _ = parts[0].pixels.shape
    zoom = max(_SHOWN // max(h, w), 1)
    line, cell = 2 * _TEXT, (max(w * zoom, _SHOWN) + _GAP, h * zoom + 2 * _TEXT)
    sheet = Image.new("RGB", (_GAP + 2 * cell[0], line + 2 * cell[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    draw.text((_GAP, line // 2), title, "black", font, anchor="lm")
    for number, (label, part) in enumerate(zip(labels, parts, strict=True)):
        left, top = _GAP + number % 2 * cell[0], line + number // 2 * cell[1]
        draw.text((left, top + line // 2), label, "black", font, anchor="lm")
        shown = Image.fromarray(np.broadcast_to(eight_bits(part.pixels), (h, w, 3)).copy())
        mask = None if part.alpha is None else Image.fromarray(eight_bits(part.alpha)).resize((w * zoom, h * zoom))
        sheet.paste(shown.resize((w * zoom, h * zoom), Image.Resampling.BICUBIC), (left, top + line), mask)
    return np.asarray(sheet)


def _duration(seconds: float) -> str:
    """0.8 s, 45 s, 12 min, 1.5 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.{int(seconds < 10 * size)}f} {unit}"
    return f"{seconds:.{int(seconds < 10)}f} s"

"""paper: the paper's test sets, metrics and protocol -> its table, ours beside published."""

import argparse
import sys
from pathlib import Path

from ..paper.published import COLUMNS
from .shared import DEVICE_HELP, NAMED, load_named_weights, pick_device, positive, say, share


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "paper",
        help="evaluate as the paper does, and write its table with published rows",
        epilog="Killed or stopped, the same command goes on where it was. The restored pictures are kept in "
        "OUT/pictures, about 2 MB each: 18 GB for two rows of all four sets. A whole 1280x720 picture, never cut to "
        "tiles, takes about 2 GB of memory in bf16 on the CPU, and 3 GB with its scores. Exit status 1: some pictures "
        "failed.",
    )
    option = sub.add_argument_group("pictures").add_argument
    sets = "test sets (default: the paper's, of REDS 300 compressed pictures; also reds, realblur_r, kohler, levin)"
    four = ["gopro", "hide", "realblur_j", "reds_val300"]
    option("--sets", nargs="+", default=four, metavar="NAME", help=sets)
    option("--pairs", nargs="+", default=[], metavar="FOLDER", help="folders of your own pairs, instead of --sets")
    option("--root", default="data", metavar="FOLDER", help="where the data scripts put the sets (default: data)")
    option("--blur", choices=("blur", "blur_gamma"), default="blur", help="GoPro's kind of blur (default: blur)")
    option("--limit", type=positive, metavar="N", help="only N pictures of each set, evenly spread; marked as such")
    option("--incomplete", action="store_true", help="take what is there of a set that lacks pictures; marked, too")
    option("--no-restore", action="store_true", help="only score the pictures that are there, and write the table anew")
    option("--out", required=True, metavar="FOLDER", help="for pictures, scores.jsonl, table.md and table.json")
    option = sub.add_argument_group("scores").add_argument
    align = "how picture and truth are laid on each other for PSNR and SSIM (default: each set's own protocol)"
    option("--align", choices=("plain", "realblur", "shift", "kohler"), help=align)
    metrics = f"of {', '.join(COLUMNS)} (default: all)"
    option("--metrics", nargs="+", default=COLUMNS, choices=COLUMNS, metavar="NAME", help=metrics)
    option("--niqe-parameters", metavar="FILE", help="NIQE's pristine model: the authors' .mat, or a .npz of the same")
    option("--device", default="auto", help=DEVICE_HELP)
    title = "the sampler's setting, by default that which the weights were published with"
    option = sub.add_argument_group(title).add_argument
    option("--weights", default=["scenes-guided"], **NAMED)
    option("--steps", type=positive, metavar="N", help="network evaluations per sample")
    option("--max-noise", type=share, metavar="B", help="largest noise step, between 0 and 1")
    option("--sampler", metavar="NAME", help="how noise is taken away: ancestral, ddim or dpm_solver")
    option("--samples", type=positive, default=4, metavar="K", help="the row -SA is their mean; 1: none (default: 4)")
    option("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    grid = "choose steps and noise by a grid, on pairs that a GoPro training with --validate-every holds out"
    option("--grid", action="store_true", help=grid)
    choose = "by what the grid's best is chosen (default: the truest spectrum within 0.5 dB of the best PSNR)"
    option("--choose", choices=("compromise", "psnr", "ssim", "lpips", "spectral"), default="compromise", help=choose)
    # The grid of DvSR (Whang 2022), supplement Sec. 6; the paper searches one too, which is not known
    steps, noise = [10, 20, 30, 50, 100, 200, 300, 500], [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    option("--grid-steps", type=positive, nargs="+", default=steps, metavar="N", help="default: %(default)s")
    option("--grid-noise", type=share, nargs="+", default=noise, metavar="B", help="default: %(default)s")
    option("--validation", type=positive, default=8, metavar="N", help="pairs for the grid (default: 8)")
    option("--crop", type=positive, default=256, metavar="PIXELS", help="of the grid's pairs (default: 256)")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..evaluate import provenance, write_results
    from ..machine import atomic_write
    from ..paper.niqe import load_pristine
    from ..paper.protocol import Evaluation
    from ..paper.report import collect, markdown, mean_over_sets

    device, out, sets, failures = pick_device(args.device), Path(args.out), {}, []
    try:
        tests, missing = _open(args)
        pristine = load_pristine(args.niqe_parameters) if args.niqe_parameters else None
        evaluation = Evaluation(out, tuple(args.metrics), pristine, device)
        rows, settings = _rows(args, device, evaluation.ledger)
        for test in tests:
            done = evaluation.run(test, rows, not args.no_restore)
            failures += filter(None, tqdm(done, desc=test.title, total=len(test.pairs), unit="picture"))
            sets[test.name] = collect(evaluation, test, rows)
    except KeyboardInterrupt:
        print(f"\nstopped; what is in {out} is whole, and the same command goes on from there", file=sys.stderr)
        return 130
    for sentence in failures:
        print(f"failed: {sentence}", file=sys.stderr)
    results = provenance() | {"settings": settings, "sets": sets, "missing": missing, "failures": failures}
    results |= {"unavailable": evaluation.unavailable, "niqe": pristine and pristine.source}
    results["mean"] = mean_over_sets(sets)
    write_results(out / "table.json", results)
    text = markdown(results)
    with atomic_write(out / "table.md") as partial:
        partial.write_text(text)
    print(f"{text}\n{out / 'table.md'} and {out / 'table.json'} written; {len(failures)} pictures failed")
    return 1 if failures else 0


def _open(args: argparse.Namespace) -> tuple[list, dict[str, str]]:
    """(test sets, {name: why it is not there}); a mistyped name is an error, and so is nothing to score."""
    from ..datasets.layouts import get_dataset
    from .testsets import open_folder, open_set

    if args.pairs:
        tests = [open_folder(folder, args.blur, args.limit, args.align) for folder in args.pairs]
        if len({test.name for test in tests}) < len(tests):
            raise ValueError("two folders of --pairs have the same name: evaluate them in two calls with two --out")
        return tests, {}
    tests, missing = [], {}
    for name in dict.fromkeys(args.sets):
        get_dataset(name)
        try:
            tests.append(open_set(name, args.root, args.blur, args.limit, not args.incomplete, args.align))
        except ValueError as error:
            missing[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
    if not tests:
        raise ValueError("none of the test sets is there: " + "; ".join(missing.values()))
    return tests, missing


def _rows(args: argparse.Namespace, device, ledger) -> tuple[list, dict]:
    """(the table's rows, what the results say of the weights' settings)."""
    from dataclasses import asdict

    from ..model import model_card
    from ..paper.protocol import Row
    from ..sample import Setting

    models, settings = load_named_weights(args.weights, device)
    rows = [Row("sharp"), Row("blurry")]
    asked = {k: v for k in ("sampler", "steps", "max_noise") if (v := getattr(args, k)) is not None}
    for label, model in models.items():
        entry, diffusion = settings[label], model.config.kind == "diffusion"
        name = entry["source"]
        own: dict = model_card(name).get("setting", {})
        if diffusion and not args.grid and not {"steps", "max_noise"} <= {*own, *asked}:
            raise ValueError(f"{name} says no setting of its own: give --grid, or --steps and --max-noise")
        samples: dict = {"samples": args.samples} if diffusion else {"steps": 1, "samples": 1}
        row = Row(label, model, entry["sha256"], Setting(**(own | asked | samples)), args.seed)
        entry["chosen"] = f"{' and '.join(asked)} given" if asked else "its own"
        if args.grid and diffusion:
            row = _search(args, row, entry, device, ledger)
        entry |= {"setting": asdict(row.setting), "bf16": row.key()["bf16"]}
        rows += dict.fromkeys((row.averaging(1), row.averaging(row.setting.samples)))
    return rows, settings


def _search(args: argparse.Namespace, row, entry: dict, device, ledger):
    """The row with the grid's setting; writes down in the entry how it was found."""
    from dataclasses import replace

    from ..paper.choose import choose_setting
    from .testsets import validation_crops

    if args.steps or args.max_noise:
        raise ValueError("--grid chooses steps and noise: leave out --steps and --max-noise, or --grid")
    pairs = validation_crops(args.validation, args.crop, args.root, args.blur, not args.incomplete, device)
    setting, cells = choose_setting(row, pairs, args.choose, ledger, args.grid_steps, args.grid_noise, say)
    entry["grid"] = cells
    entry["chosen"] = (
        f"by {args.choose}, of {len(cells)} cells, on {pairs.name}, "
        "which the weights have seen if they were trained on GoPro without --validate-every"
    )
    return replace(row, setting=setting)

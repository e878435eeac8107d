"""paper: the paper's test sets, metrics and protocol -> its table, ours beside published."""

import argparse
import sys
from pathlib import Path

from .shared import DEVICE_HELP, UserError, load_weights, pick_device, positive, share

METRICS = ("lpips", "niqe", "fid", "kid", "psnr", "ssim")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser(
        "paper",
        help="evaluate as the paper does, and write its table with published rows",
        epilog=(
            "Killed or stopped, the same command goes on where it was. The restored pictures are kept in OUT/pictures, "
            "about 2 MB each: 18 GB for two rows of all four sets. A whole 1280x720 picture, never cut to tiles, takes "
            "about 2 GB of memory in bf16 on the CPU, and 3 GB with its scores. Exit status 1: some pictures failed."
        ),
    )
    what, how = sub.add_argument_group("pictures"), sub.add_argument_group("scores")
    _add_pictures(what.add_argument)
    _add_scores(how.add_argument)
    title = "the sampler's setting, by default that which the weights were published with"
    _add_setting(sub.add_argument_group(title).add_argument)
    sub.set_defaults(run=run)


def _add_pictures(option) -> None:
    option(
        "--sets",
        nargs="+",
        default=["gopro", "hide", "realblur_j", "reds_val300"],
        metavar="NAME",
        help="test sets (default: the paper's, of REDS 300 compressed pictures; also reds, realblur_r, kohler, levin)",
    )
    option("--pairs", nargs="+", default=[], metavar="FOLDER", help="folders of your own pairs, instead of --sets")
    option("--root", default="data", metavar="FOLDER", help="where the data scripts put the sets (default: data)")
    option("--blur", choices=("blur", "blur_gamma"), default="blur", help="GoPro's kind of blur (default: blur)")
    option(
        "--limit", type=positive, metavar="N", help="only N pictures of each set, evenly spread; marked in the table"
    )
    option("--incomplete", action="store_true", help="take what is there of a set that lacks pictures; marked, too")
    option("--no-restore", action="store_true", help="only score the pictures that are there, and write the table anew")
    option("--out", required=True, metavar="FOLDER", help="for pictures, scores.jsonl, table.md and table.json")


def _add_scores(option) -> None:
    option(
        "--align",
        choices=("plain", "realblur", "shift", "kohler"),
        help="how picture and truth are laid on each other for PSNR and SSIM (default: each set's own protocol)",
    )
    option(
        "--metrics",
        nargs="+",
        default=METRICS,
        choices=METRICS,
        metavar="NAME",
        help=f"of {', '.join(METRICS)} (default: all)",
    )
    option("--niqe-parameters", metavar="FILE", help="NIQE's pristine model: the authors' .mat, or a .npz of the same")
    option("--device", default="auto", help=DEVICE_HELP)


def _add_setting(option) -> None:
    option(
        "--weights",
        nargs="+",
        default=["scenes-guided"],
        metavar="[ROW=]NAME",
        help="shipped weights or .safetensors files, each with a name for its row (default: scenes-guided)",
    )
    option("--steps", type=positive, metavar="N", help="network evaluations a sample")
    option("--max-noise", type=share, metavar="B", help="largest noise step, between 0 and 1")
    option("--sampler", choices=("ancestral", "ddim", "dpm_solver"), help="how noise is taken away")
    option("--samples", type=positive, default=4, metavar="K", help="the row -SA is their mean; 1: none (default: 4)")
    option("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    option(
        "--grid",
        action="store_true",
        help="choose steps and noise by DvSR's grid, on pairs that a GoPro training with --validate-every holds out",
    )
    option(
        "--choose",
        choices=("compromise", "psnr", "ssim", "lpips", "spectral"),
        default="compromise",
        help="by what the grid's best is chosen (default: the truest spectrum within 0.5 dB of the best PSNR)",
    )
    option("--grid-steps", type=positive, nargs="+", metavar="N", help="the grid's steps (default: DvSR's 10 .. 500)")
    option("--grid-noise", type=share, nargs="+", metavar="B", help="its maximum noise (default: DvSR's 0.01 .. 0.5)")
    option("--validation", type=positive, default=8, metavar="N", help="pairs for the grid (default: 8)")
    option("--crop", type=positive, default=256, metavar="PIXELS", help="of the grid's pairs (default: 256)")


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    from tqdm import tqdm

    from ..paper.niqe import load_pristine
    from ..paper.protocol import Evaluation
    from ..paper.report import collect
    from .deblur import check_memory

    device, sets, failures = pick_device(args.device), {}, []
    try:
        tests, missing = _open(args)
        pristine = load_pristine(args.niqe_parameters) if args.niqe_parameters else None
        evaluation = Evaluation(Path(args.out), tuple(args.metrics), pristine, device)
        rows, settings = _rows(args, device, evaluation.ledger)
        for test in tests:
            done = evaluation.run(test, rows, not args.no_restore, check_memory)
            failures += filter(None, tqdm(done, desc=test.title, total=len(test.pairs), unit="picture"))
            sets[test.name] = collect(evaluation, test, rows)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        print(f"\nstopped; what is in {args.out} is whole, and the same command goes on from there", file=sys.stderr)
        return 130
    for sentence in failures:
        print(f"failed: {sentence}", file=sys.stderr)
    results = {"settings": settings, "sets": sets, "missing": missing, "failures": failures}
    _write(Path(args.out), results | {"unavailable": evaluation.unavailable, "niqe": pristine and pristine.source})
    return 1 if failures else 0


def _open(args: argparse.Namespace) -> tuple[list, dict[str, str]]:
    """(test sets, {name: why it is not there}); a mistyped name is an error, and so is nothing to score."""
    from ..datasets.layouts import get_dataset
    from .testsets import open_folder, open_set

    if args.pairs:
        tests = [open_folder(folder, args.blur, args.limit, args.align) for folder in args.pairs]
        if len({test.name for test in tests}) < len(tests):
            raise UserError("two folders of --pairs have the same name: evaluate them in two calls with two --out")
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
        raise UserError("none of the test sets is there: " + "; ".join(missing.values()))
    return tests, missing


def _rows(args: argparse.Namespace, device, ledger) -> tuple[list, dict]:
    """(the table's rows, what the results say of the weights' settings)."""
    import dataclasses

    from ..machine import sha256
    from ..model import weights_path
    from ..paper.protocol import Row
    from ..sample import Setting

    rows, settings = [Row("sharp"), Row("blurry")], {}
    for item in args.weights:
        label, _, source = item.rpartition("=")
        label = label or Path(source).name.removesuffix(".safetensors")
        if label in settings or label in ("sharp", "blurry") or label.endswith("-SA"):
            raise UserError(f"a row cannot be named {label!r}: that is taken; give another by --weights ROW={source}")
        model, card = load_weights(source, device)
        diffusion = model.config.kind == "diffusion"
        own = card.get("setting", {})
        asked = {k: v for k in ("sampler", "steps", "max_noise") if (v := getattr(args, k)) is not None}
        if diffusion and not args.grid and not {"steps", "max_noise"} <= {*own, *asked}:
            raise UserError(f"{source} says no setting of its own: give --grid, or --steps and --max-noise")
        samples = {"samples": args.samples} if diffusion else {"steps": 1, "samples": 1}
        row = Row(label, model, sha256(weights_path(source)), Setting(**(own | asked | samples)), args.seed)
        entry = {
            "source": source,
            "sha256": row.weights,
            "chosen": f"{' and '.join(asked)} given" if asked else "its own",
        }
        if args.grid and diffusion:
            row, found = _search(args, row, device, ledger)
            entry |= found
        settings[label] = entry | {"setting": dataclasses.asdict(row.setting), "config": model.config.to_dict()}
        settings[label]["bf16"] = row.key()["bf16"]
        rows += [row.averaging(1)] + ([row.averaging(row.setting.samples)] if row.setting.samples > 1 else [])
    return rows, settings


def _search(args: argparse.Namespace, row, device, ledger) -> tuple:
    """The row with the grid's setting, and what the results say of the search."""
    import dataclasses

    from ..paper.choose import GRID_MAX_NOISE, GRID_STEPS, choose_setting
    from .testsets import validation_crops

    if args.steps or args.max_noise:
        raise UserError("--grid chooses steps and noise: leave out --steps and --max-noise, or --grid")
    pairs = validation_crops(args.validation, args.crop, args.root, args.blur, not args.incomplete, device)
    grid = tuple(args.grid_steps or GRID_STEPS), tuple(args.grid_noise or GRID_MAX_NOISE)
    setting, cells = choose_setting(row, pairs, args.choose, ledger, *grid, lambda line: print(line, flush=True))
    chosen = (
        f"by {args.choose}, of {len(cells)} cells, on {pairs.name}, "
        "which the weights have seen if they were trained on GoPro without --validate-every"
    )
    return dataclasses.replace(row, setting=setting), {"chosen": chosen, "grid": cells}


def _write(out: Path, results: dict) -> None:
    """table.json and table.md, with the means over sets, how they came about, and the published rows."""
    from importlib.metadata import distributions

    from ..evaluate import provenance, write_results
    from ..machine import atomic_write
    from ..paper.published import PUBLISHED
    from ..paper.report import markdown, mean_over_sets

    results = provenance() | results | {"mean": mean_over_sets(results["sets"])}
    versions = {found.name: found.version for found in distributions()}
    scoring = ("torch-fidelity", "opencv-python-headless")
    results["packages"] |= {name: versions[name] for name in scoring if name in versions}
    results["published"] = {name: [row._asdict() for row in rows] for name, rows in PUBLISHED.items()}
    write_results(out / "table.json", results)
    text = markdown(results)
    with atomic_write(out / "table.md") as partial:
        partial.write_text(text)
    print(f"{text}\n{out / 'table.md'} and {out / 'table.json'} written; {len(results['failures'])} pictures failed")

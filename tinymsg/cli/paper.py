"""paper: the paper's test sets, metrics and protocol -> its table, ours beside published."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from .shared import DEVICE_HELP, UserError, load_weights, pick_device, positive, share


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser(
        "paper",
        help="evaluate as the paper does, and write its table with published rows",
        epilog=(
            "Killed or stopped, the same command goes on where it was. The restored pictures are kept in OUT/pictures, about 2 MB "
            "each: 18 GB for two rows of all four sets. A whole 1280x720 picture, never cut to tiles, takes about 2 GB of memory "
            "in bf16 on the CPU, and 3 GB with its scores. Exit status 1: some pictures failed, and are named."
        ),
    )
    _add_what(sub.add_argument)
    _add_scores(sub.add_argument)
    group = sub.add_argument_group("the sampler's setting", "by default that which the weights were published with")
    _add_setting(group.add_argument)
    sub.set_defaults(run=run)


def _add_what(option: Callable) -> None:
    """Which weights, on which pictures."""
    option(
        "--weights",
        nargs="+",
        default=["scenes-guided"],
        metavar="[ROW=]NAME",
        help="shipped weights or .safetensors files, each with a name for its row (default: %(default)s)",
    )
    option(
        "--sets",
        nargs="+",
        default=["gopro", "hide", "realblur_j", "reds_val300"],
        metavar="NAME",
        help="test sets (default: the paper's, of REDS 300 compressed pictures; also reds, realblur_r, kohler, levin)",
    )
    option("--pairs", nargs="+", default=[], metavar="FOLDER", help="folders of your own pairs, instead of --sets")
    option("--out", required=True, metavar="FOLDER", help="for pictures, scores.jsonl, table.md and table.json")
    option(
        "--root", default="data", metavar="FOLDER", help="where the data scripts put the sets (default: %(default)s)"
    )
    option("--blur", choices=("blur", "blur_gamma"), default="blur", help="GoPro's kind of blur (default: %(default)s)")
    option(
        "--limit", type=positive, metavar="N", help="only N pictures of each set, evenly spread; marked in the table"
    )
    option(
        "--incomplete", action="store_true", help="take what is there of a set that lacks pictures; marked in the table"
    )


def _add_scores(option: Callable) -> None:
    """What is measured, how, and where."""
    option(
        "--align",
        choices=("plain", "realblur", "shift", "kohler"),
        help="how picture and truth are laid on each other for PSNR and SSIM (default: each set's own protocol)",
    )
    option(
        "--metrics",
        nargs="+",
        default=["lpips", "niqe", "fid", "kid", "psnr", "ssim"],
        metavar="NAME",
        help="which to compute (default: the paper's, %(default)s)",
    )
    option("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    option(
        "--niqe-parameters",
        metavar="FILE",
        help="NIQE's pristine model: the authors' .mat, a .npz, or a folder of sharp pictures to fit one to (marked)",
    )
    option("--inception", metavar="FILE", help="torch-fidelity's Inception weights, instead of their download")
    option(
        "--pieces", type=positive, metavar="PIXELS", help="FID and KID of pieces of that size (default: whole pictures)"
    )
    option(
        "--no-restore",
        action="store_true",
        help="only score the pictures that are there, from the same kind of device, and write the table anew",
    )
    option("--device", default="auto", help=DEVICE_HELP)


def _add_setting(option: Callable) -> None:
    """The sampler's setting: given, or chosen by a grid."""
    option(
        "--grid",
        action="store_true",
        help="choose steps and noise by DvSR's grid, on pairs that a GoPro training with --validate-every holds out",
    )
    option(
        "--choose",
        default="compromise",
        metavar="METRIC",
        help="by what the grid's best is chosen: psnr, ssim, lpips, spectral, or compromise: the truest spectrum within "
        "0.5 dB of the best PSNR (default)",
    )
    option("--grid-steps", type=positive, nargs="+", metavar="N", help="the grid's steps (default: DvSR's 10 .. 500)")
    option("--grid-noise", type=share, nargs="+", metavar="B", help="its maximum noise (default: DvSR's 0.01 .. 0.5)")
    option("--validation", type=positive, default=8, metavar="N", help="pairs for the grid (default: %(default)s)")
    option("--crop", type=positive, default=256, metavar="PIXELS", help="the grid's crops (default: %(default)s)")
    option("--steps", type=positive, metavar="N", help="network evaluations a sample")
    option("--max-noise", type=share, metavar="B", help="largest noise step, between 0 and 1")
    option("--sampler", choices=("ancestral", "ddim", "dpm_solver"), help="how noise is taken away")
    option(
        "--samples",
        type=positive,
        default=4,
        metavar="K",
        help="samples whose mean is the row -SA; 1: no such row (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    from ..paper.ledger import Ledger
    from ..paper.protocol import Scorer, rows_of

    device, out = pick_device(args.device), Path(args.out)
    try:
        tests, missing = _open(args)
        scorer = Scorer(_pristine(args), device, args.pieces, _inception(args), tuple(args.metrics))
        ledger = Ledger(out / "scores.jsonl")
        entries, settings = _entries(args, device, ledger)
        rows = rows_of(entries)
        sets, values, failures = {}, {}, []
        for test in tests:
            failures += _run_set(args, test, rows, out, ledger, scorer)
            sets[test.name], values[test.name] = _summarise(test, rows, out, ledger, scorer)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        print(f"\nstopped; what is in {out} is whole, and the same command goes on from there", file=sys.stderr)
        return 130
    return _write(out, scorer, sets, values, missing, settings, failures)


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


def _pristine(args: argparse.Namespace):
    from ..paper.niqe import fit_pristine, load_pristine

    if args.niqe_parameters is None:
        return None
    return (fit_pristine if Path(args.niqe_parameters).is_dir() else load_pristine)(args.niqe_parameters)


def _inception(args: argparse.Namespace) -> Path | None:
    import pickle

    import torch

    if args.inception is None:
        return None
    try:
        torch.load(
            args.inception, weights_only=True, mmap=True
        )  # torch-fidelity itself would run code that the file holds
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{args.inception} cannot be read as weights: {str(error).splitlines()[0]}") from None
    return Path(args.inception)


def _entries(args: argparse.Namespace, device, ledger) -> tuple[list, dict]:
    """(what is evaluated, what the results say of it)."""
    import dataclasses

    from ..machine import sha256
    from ..model import weights_path
    from ..paper import protocol
    from ..sample import Setting

    entries, settings = [], {}
    for item in args.weights:
        label, _, source = item.rpartition("=")
        label = label or Path(source).name.removesuffix(".safetensors")
        if label in settings or label in ("sharp", "blurry") or label.endswith("-SA"):
            raise UserError(
                f"a row cannot be named {label!r}: the name is taken; give another by --weights ROW={source}"
            )
        model, card = load_weights(source, device)
        own = {k: v for k, v in card.get("setting", {}).items() if k != "samples"}
        asked = {k: v for k in ("sampler", "steps", "max_noise") if (v := getattr(args, k)) is not None}
        if model.config.kind == "diffusion" and not args.grid and not {"steps", "max_noise"} <= {*own, *asked}:
            raise UserError(f"{source} says no setting of its own: give --grid, or --steps and --max-noise")
        chosen = _chosen(asked, own)
        asked |= {"samples": args.samples} if model.config.kind == "diffusion" else {"steps": 1, "samples": 1}
        entry = protocol.Entry(label, model, sha256(weights_path(source)), Setting(**(own | asked)), args.seed)
        settings[label] = {"source": source, "sha256": entry.weights, "chosen": chosen}
        if args.grid and model.config.kind == "diffusion":
            entry, found = _search(args, entry, card or _run_record(source), device, ledger)
            settings[label] |= found
        entries.append(entry)
        settings[label]["setting"] = dataclasses.asdict(entry.setting)
        settings[label]["config"] = model.config.to_dict()
    return entries, settings


def _chosen(asked: dict, own: dict) -> str:
    """Where a setting is from: the command line, the weights, or both."""
    if not asked:
        return "the weights' own"
    return "given" if own.keys() <= asked.keys() else f"{' and '.join(asked)} given, the rest the weights' own"


def _run_record(source: str) -> dict | None:
    """The run.json that a training writes beside its weights."""
    from ..evaluate import read_results
    from ..model import weights_path

    path = weights_path(source).with_name("run.json")
    return read_results(path) if path.is_file() else None


def _search(args: argparse.Namespace, entry, record: dict | None, device, ledger) -> tuple:
    """The entry with the grid's setting, and what the results say of the search. record: of the weights' training."""
    import dataclasses

    from ..evaluate import MetricUnavailable
    from ..paper import choose
    from .testsets import validation_pairs

    if args.steps or args.max_noise:
        raise UserError("--grid chooses steps and noise: leave out --steps and --max-noise, or --grid")
    pairs = validation_pairs(args.validation, args.root, args.blur, not args.incomplete, device)
    try:
        setting, cells = choose.choose_setting(
            entry,
            pairs,
            args.crop,
            args.choose,
            ledger,
            tuple(args.grid_steps or choose.GRID_STEPS),
            tuple(args.grid_noise or choose.GRID_MAX_NOISE),
            lambda line: print(line, flush=True),
        )
    except MetricUnavailable as error:
        raise UserError(f"--choose {args.choose}: {error}") from None
    chosen, doubt = f"by {args.choose}, of {len(cells)} cells, on {pairs.name}", choose.doubt(record, pairs)
    if doubt:
        print(f"warning: {entry.label}: {doubt}", file=sys.stderr)
    return dataclasses.replace(entry, setting=setting), {"chosen": chosen, "doubt": doubt, "grid": cells}


def _run_set(args: argparse.Namespace, test, rows: list, out: Path, ledger, scorer) -> list[str]:
    """Restore and score a set under a progress bar; the sentences on what failed."""
    from tqdm import tqdm

    from ..paper import protocol
    from .deblur import check_memory

    done = protocol.run_set(test, rows, out, ledger, scorer, not args.no_restore, check_memory)
    failures = [sentence for sentence in tqdm(done, desc=test.title, total=len(test.pairs), unit="picture") if sentence]
    for sentence in failures:
        print(f"failed: {sentence}", file=sys.stderr)
    return failures


def _summarise(test, rows: list, out: Path, ledger, scorer) -> tuple:
    from ..paper.protocol import score_whole_set
    from ..paper.report import collect

    whole = {row.label: score_whole_set(test, row, out, ledger, scorer) for row in rows}
    return collect(test, rows, ledger, scorer, whole)


_MODULE = {"torch-fidelity": "torch_fidelity", "opencv-python-headless": "cv2"}  # whose versions matter to the scores


def _write(out: Path, scorer, sets: dict, values: dict, missing: dict, settings: dict, failures: list[str]) -> int:
    """table.json and table.md."""
    from importlib.metadata import version
    from importlib.util import find_spec

    from ..evaluate import provenance, write_results
    from ..paper.published import PUBLISHED
    from ..paper.report import markdown, mean_over_sets

    niqe = scorer.pristine and {"source": scorer.pristine.source, "fitted_here": scorer.pristine.fitted_here}
    results = provenance()
    results["packages"] |= {name: version(name) for name, module in _MODULE.items() if find_spec(module)}
    results |= {
        "settings": settings,
        "sets": sets,
        "mean": mean_over_sets(sets, values),
        "missing": missing,
        "unavailable": scorer.unavailable,
        "niqe": niqe,
        "pieces": scorer.pieces,
        "failures": failures,
        "published": {name: [row._asdict() for row in rows] for name, rows in PUBLISHED.items()},
    }
    write_results(out / "table.json", results)
    text = markdown(results)
    partial = out / "table.md.part"
    partial.write_text(text)
    partial.replace(out / "table.md")
    print(text)
    print(
        f"{out / 'table.md'} and {out / 'table.json'} written"
        + (f"; {len(failures)} pictures failed" if failures else "")
    )
    return 1 if failures else 0

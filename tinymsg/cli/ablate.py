"""ablate: a study, of the one-dimensional toy or of pictures -> one results file."""

import argparse
import os
from pathlib import Path

from .shared import UserError, at_least, positive, read_record

STUDY_NAMES = ("forms", "choices", "budget", "breadth", "pictures")  # written here too: --help imports no torch


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser(
        "ablate",
        help="train and score the variants of a study",
        epilog=(
            "Studies of the one-dimensional toy: forms (what the guidance is made of), choices (what is predicted, loss weight, "
            "number of signals, ...), budget (steps), breadth (number of training kernels x form of guidance). Of pictures: "
            "pictures (the three arms and regression on every test domain)."
        ),
    )
    sub.add_argument("--out", required=True, metavar="FILE", help="results file (JSON); an existing one is continued")
    sub.add_argument("--study", choices=STUDY_NAMES, default="forms", help="default: %(default)s")
    sub.add_argument("--arms", nargs="+", metavar="NAME", help="default: all of the study")
    sub.add_argument("--seeds", type=positive, metavar="N", help="trainings of each variant (default: the study's)")
    sub.add_argument("--steps", type=positive, metavar="N", help="optimiser steps each (default: the study's)")
    sub.add_argument(
        "--count",
        type=at_least(2),
        metavar="N",
        help="test signals or pictures a domain, at least 2 (default: the study's)",
    )
    sub.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)"
    )
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    from ..evaluate import provenance, write_results
    from ..studies import trials as studies

    out = Path(args.out)
    study = studies.get_study(args.study)
    steps, count = args.steps or study.steps, args.count or study.count
    trials = list(study.trials(args.seeds or study.seeds, steps))
    known = list(dict.fromkeys(trial.arm for trial in trials))
    unknown = [arm for arm in args.arms or [] if arm not in known]
    if unknown:
        raise UserError(f"unknown arm {unknown[0]!r} of {args.study}; known: {', '.join(known)}")
    results = provenance() | {"study": args.study, "steps": steps, "count": count, "runs": []}
    if out.exists():  # goes on where an earlier call stopped, if that had the same budget and the same tests
        results["runs"] = _earlier_runs(out, args.study, steps, count)
    done = {tuple(run[name] for name in ("arm", "seed", "kernels", "steps")) for run in results["runs"]}
    todo = [trial for trial in trials if trial.key not in done and trial.arm in (args.arms or known)]
    order = {trial.key: place for place, trial in enumerate(trials)}
    print(f"{args.study}: {len(todo)} of {len(trials)} trainings to do", flush=True)
    write_results(out, results)
    for entry in studies.run_study(todo, min(args.workers, max(1, len(todo))), count):
        key = tuple(entry[name] for name in ("arm", "seed", "kernels", "steps"))
        results["runs"].append(entry)
        results["runs"].sort(
            key=lambda run: order.get(tuple(run[n] for n in ("arm", "seed", "kernels", "steps")), len(order))
        )
        write_results(out, results)
        print(f"{key}: " + ", ".join(f"{d} {s['psnr']['mean']:.1f}" for d, s in entry["scores"].items()), flush=True)
    return 0


def _earlier_runs(out: Path, study: str, steps: int, count: int) -> list[dict]:
    """The runs of a results file that this call may go on with."""
    from ..studies import trials as studies

    earlier = read_record(out, ("study", "steps", "runs"), "use another --out")
    default = studies.STUDIES[earlier["study"]].count if earlier["study"] in studies.STUDIES else None
    held = earlier["study"], earlier["steps"], earlier.get("count", default)  # earlier files do not say their count
    if held != (study, steps, count):
        raise UserError(
            f"{out} holds the study {held[0]!r} at {held[1]} steps, scored on {held[2]} a domain, not {study!r} at "
            f"{steps} steps on {count}; use another --out"
        )
    return earlier["runs"]

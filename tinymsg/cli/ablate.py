"""ablate: a study of the one-dimensional toy -> one results file."""

import argparse
import os
from pathlib import Path

from .shared import common, positive, read_record, say


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "ablate",
        help="train and score the variants of a study of the toy",
        epilog="Studies: forms (what the guidance is made of), breadth (number of training kernels x form of "
        "guidance). The trial on pictures is a command of its own: python -m tinymsg.studies trial.",
    )
    common(sub, "out", help="results file (JSON); an existing one is continued")
    sub.add_argument("--study", default="forms", metavar="NAME", help="see below (default: %(default)s)")
    sub.add_argument("--arms", nargs="+", metavar="NAME", help="default: all of the study")
    sub.add_argument("--seeds", type=positive, metavar="N", help="training runs of each variant (default: the study's)")
    sub.add_argument("--steps", type=positive, metavar="N", help="optimiser steps each (default: the study's)")
    common(sub, "count", help="test signals per domain, at least 2 (default: the study's)")
    cores = os.cpu_count() or 1
    sub.add_argument("--workers", type=positive, default=cores, metavar="N", help="processes (default: one per core)")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..evaluate import provenance, write_results
    from ..studies.trials import KEY, STUDIES, run_study

    if args.study not in STUDIES:
        raise ValueError(f"unknown study {args.study!r}; known: {', '.join(STUDIES)}")
    out, study = Path(args.out), STUDIES[args.study]
    steps, count = args.steps or study.base.training.steps, args.count or study.count
    trials = study.trials(args.seeds or study.seeds, steps)
    known = list(dict.fromkeys(trial.arm for trial in trials))
    if unknown := [arm for arm in args.arms or [] if arm not in known]:
        raise ValueError(f"unknown arm {unknown[0]!r} of {args.study}; known: {', '.join(known)}")
    runs, budget = {}, {"study": args.study, "steps": steps, "count": count}
    if out.exists():  # goes on where an earlier call stopped, if that had the same budget and the same tests
        earlier = read_record(out, ("study", "steps", "runs"), "use another --out")
        held = {"count": study.count} | {name: earlier[name] for name in budget if name in earlier}
        if differing := [name for name in budget if held[name] != budget[name]]:
            found = ", ".join(f"{name} {held[name]} instead of {budget[name]}" for name in differing)
            raise ValueError(f"{out} holds {found}; use another --out")
        runs = {tuple(run[name] for name in KEY): run for run in earlier["runs"]}
    todo = [trial for trial in trials if trial.key not in runs and trial.arm in (args.arms or known)]
    order = {trial.key: place for place, trial in enumerate(trials)}  # runs of arms that are gone come last

    def write() -> None:
        ordered = sorted(runs, key=lambda key: order.get(key, len(order)))
        write_results(out, provenance() | budget | {"runs": [runs[key] for key in ordered]})

    say(f"{args.study}: {len(todo)} of {len(trials)} training runs to do")
    write()
    for entry in run_study(todo, min(args.workers, max(1, len(todo))), count):
        key = tuple(entry[name] for name in KEY)
        runs[key] = entry
        write()
        say(f"{key}: " + ", ".join(f"{d} {s['psnr']['mean']:.1f}" for d, s in entry["scores"].items()))
    return 0

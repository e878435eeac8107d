"""ablate: the variants of the one-dimensional toy -> one results file."""

import argparse
from pathlib import Path

from .shared import UserError, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser("ablate", help="train and score the variants of the one-dimensional toy")
    sub.add_argument("--out", required=True, metavar="FILE", help="results file (JSON); an existing one is continued")
    sub.add_argument("--arms", nargs="+", metavar="NAME", help="default: all")
    sub.add_argument("--seeds", type=positive, default=2, metavar="N", help="trainings of each variant (default: %(default)s)")
    sub.add_argument("--steps", type=positive, default=800, metavar="N", help="optimiser steps each (default: %(default)s)")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    from .. import toy
    from ..results import provenance, read_results, write_results

    out = Path(args.out)
    unknown = [arm for arm in args.arms or [] if arm not in toy.ARMS]
    if unknown:
        raise UserError(f"unknown arm {unknown[0]!r}; known: {', '.join(toy.ARMS)}")
    results = provenance() | {"steps": args.steps, "runs": []}
    if out.exists():  # goes on where an earlier call stopped, if that had the same budget
        earlier = read_results(out)
        if earlier.get("steps") != args.steps:
            raise UserError(f"{out} holds runs of {earlier.get('steps')} steps; use another --out for {args.steps}")
        results["runs"] = earlier["runs"]
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    for seed in range(args.seeds):
        for arm in args.arms or toy.ARMS:
            if (arm, seed) not in done:
                run = toy.run_arm(arm, args.steps, seed)
                results["runs"].append(run)
                write_results(out, results)
                print(f"{arm}, seed {seed}: " + ", ".join(f"{d} {s['psnr']['mean']:.1f}" for d, s in run["scores"].items()), flush=True)
    return 0

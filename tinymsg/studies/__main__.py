"""python -m tinymsg.studies trial: trains and scores the trial's arms -> one results file."""

import argparse
import os
import sys
from pathlib import Path

from .. import cli
from ..cli.allocator import restart_with_allocator
from ..cli.shared import common, positive, read_record, say

RESULTS = "notebooks/results/trial.json"


def parser() -> argparse.ArgumentParser:
    """The command line. Of what is not named, all is done."""
    top = argparse.ArgumentParser(prog="python -m tinymsg.studies", description="Training runs that lessons quote.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sub = commands.add_parser("trial", help="the paper's own form: plain, control, guided and oracle, by LPIPS")
    out = "results file; an existing one is continued (default: %(default)s)"
    common(sub, "out", required=False, default=RESULTS, help=out)
    sub.add_argument("--form", nargs="+", metavar="NAME", help="eps, v, x0")
    sub.add_argument("--arm", nargs="+", metavar="NAME", help="plain, control, guided, oracle, or a variant of guided")
    sub.add_argument("--run", nargs="+", type=int, metavar="N", help="0 to 4", dest="runs")
    sub.add_argument("--budget", nargs="+", metavar="NAME", help="main, triple")
    settings = f"results file whose settings of the sampler hold (default: --out, else {RESULTS})"
    sub.add_argument("--settings", metavar="FILE", help=settings)
    sub.add_argument("--scratch", metavar="FOLDER", help="checkpoints and weights (default: runs/NAME of --out)")
    cores = os.cpu_count() or 1
    sub.add_argument("--workers", type=positive, default=cores, metavar="N", help="processes (default: one per core)")
    what = "train nothing: make the weights of run 0 of the main arms, as trained here, the shipped trial-ARM"
    sub.add_argument("--ship", action="store_true", help=what)
    sub.set_defaults(run=run)
    return top


def run(args: argparse.Namespace) -> int:
    """Carry out the command `trial`."""
    import json

    from ..evaluate import provenance
    from . import trial, verdicts
    from .running import key, ship
    from .running import run as run_trial

    everything = trial.plan()
    wanted = {"form": args.form, "arm": args.arm, "run": args.runs, "budget": args.budget}
    for name, values in wanted.items():
        known = list(dict.fromkeys(getattr(one, name) for one in everything))
        if unknown := [value for value in values or [] if value not in known]:
            raise ValueError(f"unknown {name} {unknown[0]}; known: {', '.join(map(str, known))}")
    chosen = [one for one in everything if all(not v or getattr(one, n) in v for n, v in wanted.items())]
    sizes = {name: getattr(trial, name) for name in ("STEPS", "CHECKPOINTS", "SIZE", "FEW", "ALL", "SAMPLES")}
    sizes |= {"MARGIN": verdicts.MARGIN, "SLACK": trial.SLACK, "VALIDATION": trial.VALIDATION}
    plan = json.loads(json.dumps(sizes | {"recipe": trial.BASE.to_dict()}))
    out, earlier = Path(args.out), {"settings": {}, "trainings": [], "rows": []}
    if out.exists():
        earlier = _read(out, plan, "use another --out")
    scratch = Path(args.scratch or Path("runs") / out.stem)
    if args.ship:
        say(f"shipped: {', '.join(ship(earlier, scratch)) or 'none'}")
        return 0
    settings = earlier["settings"]
    if args.settings or (not settings and Path(RESULTS).exists()):
        source = Path(args.settings or RESULTS)
        settings = _read(source, plan, "use another --settings")["settings"] | settings
        say(f"settings of {source}: {', '.join(settings)}")
    done = {key(entry) for entry in earlier["trainings"]}
    todo = [one for one in chosen if one not in done]
    for form in {one.form for one in todo} - settings.keys():
        if not any(one.is_reference for one in todo if one.form == form):
            raise ValueError(f"the setting of form {form} is not chosen: run its arm plain, run 0, too, or --settings")
    record = provenance() | {"command": "python -m tinymsg.studies " + " ".join(sys.argv[1:])}
    record |= {"claim": trial.__doc__, "plan": plan}
    record |= {"ladders": {name: [repr(domain) for domain in degrees] for name, degrees in trial.LADDERS.items()}}
    record |= {name: earlier[name] for name in ("trainings", "rows")} | {"settings": settings}
    say(f"{len(todo)} of {len(everything)} training runs to do")
    run_trial(todo, record, out, scratch, args.workers, say)
    say("done")
    return 0


def _read(path: Path, plan: dict, advice: str) -> dict:
    record = read_record(path, ("plan", "settings", "trainings", "rows"), advice)
    if differing := [name for name in plan if record["plan"].get(name) != plan[name]]:
        raise ValueError(f"{path} was made by another plan ({', '.join(differing)} differ); {advice}")
    return record


if __name__ == "__main__":
    restart_with_allocator("-m", "tinymsg.studies", *sys.argv[1:])
    sys.exit(cli.main(top=parser()))

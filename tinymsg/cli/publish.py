"""publish: trained and evaluated weights -> shipped weights with their card."""

import argparse
from pathlib import Path

from .shared import read_record


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("publish", help="ship evaluated weights with their model card (for maintainers)")
    sub.add_argument("run_folder", metavar="RUN", help="the --out folder of a finished train")
    sub.add_argument("--name", required=True, help="the weights' name")
    sub.add_argument("--results", required=True, metavar="FILE", help="evaluate's results file with these very weights")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import shutil

    from .. import model
    from ..evaluate import write_results
    from ..machine import atomic_write, sha256

    folder = Path(args.run_folder)
    source = folder / "weights.safetensors"
    model.load_model(source)  # it is whole
    entries = ("weights", "parameters", "setting", "unavailable", "domains")
    advice = "evaluate these very weights first, and give the file that it writes"
    results = read_record(args.results, entries, advice)
    advice = "give the folder of a finished train, as it left it"
    ran = read_record(folder / "run.json", ("command", "config", "steps"), advice)
    label = next((k for k, w in results["weights"].items() if w["sha256"] == sha256(source)), None)
    if label is None:
        raise ValueError(f"{args.results} holds no scores of {source}: evaluate these very weights first")
    rows = ("blurry", label, f"{label}-mean")
    scores = {d: {k: s for k, s in r["scores"].items() if k in rows} for d, r in results["domains"].items()}
    card = ran | {"name": args.name, "sha256": sha256(source), "parameters": results["parameters"][label]}
    card |= {"setting": results["setting"], "unavailable": results["unavailable"], "scores": scores}
    target = model.WEIGHTS / f"{args.name}.safetensors"
    write_results(target.with_suffix(".json"), card)
    with atomic_write(target) as partial:  # last: weights lie there only with their card
        shutil.copyfile(source, partial)
    print(f"{target} and its card written")
    return 0

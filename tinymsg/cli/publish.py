"""publish: trained and evaluated weights -> shipped weights with their card."""

import argparse
from pathlib import Path

from .shared import UserError, read_record


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser("publish", help="ship evaluated weights with their model card (for maintainers)")
    sub.add_argument("run_folder", metavar="RUN", help="the --out folder of a finished train")
    sub.add_argument("--name", required=True, help="the weights' name")
    sub.add_argument("--results", required=True, metavar="FILE", help="evaluate's results file with these very weights")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ship trained weights: copy them, and write the card from the run's and the evaluation's own records."""
    import shutil

    from ..evaluate import write_results
    from ..machine import sha256
    from ..model import WEIGHTS, load_model

    run = Path(args.run_folder)
    source = run / "weights.safetensors"
    try:
        load_model(source)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    results = read_record(
        args.results,
        ("weights", "parameters", "setting", "unavailable", "domains"),
        "evaluate these very weights first, and give the file that it writes",
    )
    ran = read_record(
        run / "run.json", ("command", "config", "steps"), "give the folder of a finished train, as it left it"
    )
    label = next((k for k, w in results["weights"].items() if w["sha256"] == sha256(source)), None)
    if label is None:
        raise UserError(f"{args.results} holds no scores of {source}: evaluate these very weights first")
    target = WEIGHTS / f"{args.name}.safetensors"
    card = ran | {
        "name": args.name,
        "sha256": sha256(source),
        "parameters": results["parameters"][label],
        "setting": results["setting"],
        "unavailable": results["unavailable"],
        "scores": {
            d: {row: s for row, s in r["scores"].items() if row in ("blurry", label, f"{label}-mean")}
            for d, r in results["domains"].items()
        },
    }
    partial = target.with_name(target.name + ".part")
    shutil.copyfile(source, partial)
    write_results(WEIGHTS / f"{args.name}.json", card)
    partial.replace(target)  # last: weights lie there only with their card
    print(f"{target} and its card written")
    return 0

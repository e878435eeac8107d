"""publish: trained and evaluated weights -> shipped weights with their card, or a folder for the Hugging Face hub."""

import argparse
import csv
import math
from pathlib import Path

from .shared import read_record

README = """---
{head}
---

# {name}

Weights of tinymsg, which takes blur out of photographs by the method of
[Ren et al. 2023](https://arxiv.org/abs/2212.01789): {parameters:,} parameters, {steps:,} steps on {learnt_from}.
`config.json` says how they came about.

```
pip install 'tinymsg[hub]'
tinymsg deblur photo.jpg -o sharp.png --weights hf://OWNER/{name}
```

In Python: `tinymsg.pretrained("hf://OWNER/{name}")`.

{tables}"""


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("publish", help="ship evaluated weights with their model card (for maintainers)")
    sub.add_argument("run_folder", metavar="RUN", help="the --out folder of a finished train")
    sub.add_argument("--name", required=True, help="the weights' name")
    results = "what evaluate or photographs wrote of these very weights"
    sub.add_argument("--results", required=True, metavar="FILE", help=results)
    what = "write a folder for the Hugging Face hub instead, to be sent by: hf upload OWNER/NAME FOLDER"
    sub.add_argument("--hub", metavar="FOLDER", help=what)
    sub.add_argument("--pictures", metavar="TEXT", help="of whose pictures it has learnt, and under which terms")
    sub.add_argument("--licence", default="Apache-2.0", help="of the weights, by SPDX (default: %(default)s)")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import shutil

    from .. import model
    from ..evaluate import write_results
    from ..machine import atomic_write, sha256

    folder = Path(args.run_folder)
    source = folder / "weights.safetensors"
    model.load_model(source)  # it is whole
    judged = "evaluate these very weights first, and give the file that it writes"
    results = read_record(args.results, ("weights", "parameters"), judged)
    advice = "give the folder of a finished train, as it left it"
    ran = read_record(folder / "run.json", ("command", "config", "steps"), advice)
    label = next((k for k, w in results["weights"].items() if w["sha256"] == sha256(source)), None)
    if label is None:
        raise ValueError(f"{args.results} holds no scores of {source}: evaluate these very weights first")
    card = ran | {"name": args.name, "sha256": sha256(source), "parameters": results["parameters"][label]}
    card |= {"pictures": args.pictures} if args.pictures else {}
    card |= {"licence": args.licence, "history": _history(folder, ran)}
    if "quality" in results:  # written by `photographs`
        chosen = results["quality"][label]
        starts = {entry["setting"].get("start") for entry in chosen.values()} - {None}
        if missing := starts - set(model.pretrained_names()):
            raise ValueError(f"the settings begin at {missing.pop()}: publish it first, and give photographs its name")
        card |= {"judged_on": results["data"], "setting": chosen["default"]["setting"]}
        card |= {what: {name: c[what] for name, c in chosen.items()} for what in ("safe", "scores")}
        card |= {"quality": {name: c["setting"] for name, c in chosen.items()}}
    else:  # by `evaluate`
        read_record(args.results, ("setting", "unavailable", "domains"), judged)
        rows = ("blurry", label, f"{label}-mean")
        scores = {d: {k: s for k, s in r["scores"].items() if k in rows} for d, r in results["domains"].items()}
        card |= {"setting": results["setting"], "unavailable": results["unavailable"], "scores": scores}
    target = model.WEIGHTS / f"{args.name}.safetensors"
    beside = target.with_suffix(".json")
    if args.hub:
        readme, hub = _readme(card), Path(args.hub)
        target, beside = hub / model.HUB_WEIGHTS, hub / model.HUB_CARD
        with atomic_write(hub / "README.md") as partial:
            partial.write_text(readme, encoding="utf-8")
    write_results(beside, card)
    with atomic_write(target) as partial:  # last: weights lie there only with their card
        shutil.copyfile(source, partial)
    print(f"{target} and its card written")
    return 0


def _readme(card: dict) -> str:
    """The card for the pages of the Hugging Face hub: YAML that its search reads, a text, the scores in tables."""
    try:
        from huggingface_hub import ModelCardData
    except ImportError:
        raise ValueError("--hub needs huggingface_hub: pip install 'tinymsg[hub]'") from None
    from ..datasets.layouts import DATASETS
    from ..evaluate import METRICS, table

    # By evaluate: {domain: {row: {metric: ...}}}; by photographs: {quality: {set: {metric: ...}}}
    scores = {"domains": {name: {"scores": rows} for name, rows in card["scores"].items()}}
    found = [set(row) for rows in card["scores"].values() for row in rows.values()]
    metrics = [metric for metric in METRICS if found and metric in set.intersection(*found)]
    head = ModelCardData(
        license=card["licence"].lower(),
        library_name="tinymsg",
        pipeline_tag="image-to-image",
        tags=["deblurring", "image-restoration", card["config"]["network"]["kind"], "arxiv:2212.01789"],
        datasets=[name for name in DATASETS if name in card["data"].split()] or None,  # none: synthetic pairs
        metrics=metrics or None,
    )
    tables = "\n".join(f"{m}:\n\n{table(scores, m)}\n" for m in metrics)
    card = card | {"steps": sum(part["steps"] for part in card.get("history", [card]))}  # of all its runs
    return README.format(head=head, tables=tables, learnt_from=card.get("pictures", card["data"]), **card)


def _history(folder: Path, ran: dict) -> list[dict]:
    """What these weights have gone through, run by run: steps, hours, and the scores on the way.

    A run that began with weights that are shipped now goes on with their history.
    """
    from ..model import model_card, pretrained_names

    started, cards = ran.get("source", {}).get("started_from", ""), map(model_card, pretrained_names())
    before = next((card.get("history", []) for card in cards if card["sha256"] in started), [])
    speed, curve = (_rows(folder / f"{table}.csv") for table in ("speed", "validation"))
    ends = [0.0, *(row["step"] for row in speed)]
    seconds = sum(row["seconds_a_step"] * (row["step"] - end) for row, end in zip(speed, ends[:-1], strict=True))
    kept = ("step", "psnr", "lpips")
    points = [{key: row[key] for key in kept if math.isfinite(row.get(key, math.nan))} for row in curve]
    return [
        *before,
        {"command": ran["command"], "steps": ran["steps"], "hours": round(seconds / 3600, 2), "curve": points},
    ]


def _rows(path: Path) -> list[dict[str, float]]:
    """The rows of a log of numbers; none where there is no such file."""
    if not path.exists():
        return []
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

"""steps: quality against network evaluations, for every sampler and starting point -> one results file."""

import argparse

from .shared import common, load_named_weights, pick_device, positive, say


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "steps",
        help="measure how few network evaluations are enough",
        epilog="Chains start from pure noise, from the blurry picture, and from the estimate of --regression, each "
        "noised part of the way.",
    )
    common(sub, "weights", default="scenes-guided")
    start = "weights whose estimate is one of the starts (default: %(default)s)"
    sub.add_argument("--regression", metavar="NAME", default="scenes-regression", help=start)
    common(sub, "out")
    sub.add_argument("--domain", default="gopro_like", metavar="NAME", help="default: the training domain")
    common(sub, "content")
    sub.add_argument("--evaluations", type=positive, nargs="+", metavar="N", help="default: 1 2 4 8 16 32 64 250")
    common(sub, "count", default=50)
    common(sub, "size", default=64)
    common(sub, "device")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .. import evaluate as ev
    from ..sample import restore
    from ..studies import steps

    device = pick_device(args.device)
    models, weights = load_named_weights([f"model={args.weights}", f"regression={args.regression}"], device)
    if models["model"].config.kind != "diffusion" or models["regression"].config.kind != "regression":
        raise ValueError("--weights must be a diffusion model, --regression a regression model")
    starts = {"blurry": lambda x: x, "regression": lambda x: restore(models["regression"], x)}
    evaluations = tuple(args.evaluations or steps.EVALUATIONS)
    pairs = ev.domain_pairs(args.domain, args.content, args.count, ev.TEST_SEED, device)
    rows = steps.step_curves(models["model"], pairs, args.count, args.size, starts, evaluations, progress=say)
    results = {"weights": weights, "data": pairs.name, "count": args.count, "size": args.size, "rows": rows}
    ev.write_results(
        args.out, ev.provenance() | {"unavailable": ev.available(tuple(ev.METRICS), args.size)[1]} | results
    )
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        fewest = steps.fewest(rows, sampler, "noise")
        say(f"{sampler} from noise: as good as the longest chain from {fewest} evaluations on")
    return 0

"""steps: quality against network evaluations, for every sampler and starting point -> one results file."""

import argparse

from .shared import DEVICE_HELP, UserError, at_least, load_named_weights, pick_device, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser(
        "steps",
        help="measure how few network evaluations are enough",
        epilog=(
            "Chains start from pure noise, from the blurry picture, and from the estimate of --regression, each noised part of the way."
        ),
    )
    sub.add_argument(
        "--weights",
        default="scenes-guided",
        metavar="NAME",
        help="shipped weights or a .safetensors file (default: %(default)s)",
    )
    sub.add_argument(
        "--regression",
        metavar="NAME",
        default="scenes-regression",
        help="weights whose estimate is one of the starts (default: %(default)s)",
    )
    sub.add_argument("--out", required=True, metavar="FILE", help="results file (JSON)")
    sub.add_argument(
        "--domain", default="gopro_like", metavar="NAME", help="of the pictures (default: the training domain)"
    )
    sub.add_argument(
        "--content", default="scenes", help="sharp pictures: scenes, photos, or a folder (default: %(default)s)"
    )
    sub.add_argument("--evaluations", type=positive, nargs="+", metavar="N", help="default: 1 2 4 8 16 32 64 250")
    sub.add_argument(
        "--count", type=at_least(2), default=50, metavar="N", help="pictures, at least 2 (default: %(default)s)"
    )
    sub.add_argument(
        "--size", type=positive, default=64, metavar="PIXELS", help="side of the crops (default: %(default)s)"
    )
    sub.add_argument("--device", default="auto", help=DEVICE_HELP)
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    from .. import evaluate as ev
    from ..evaluate import provenance, write_results
    from ..sample import restore
    from ..studies import steps

    device = pick_device(args.device)
    models, weights = load_named_weights([f"model={args.weights}", f"regression={args.regression}"], device)
    if models["model"].config.kind != "diffusion" or models["regression"].config.kind != "regression":
        raise UserError("--weights must be a diffusion model, --regression a regression model")
    starts = {"blurry": lambda x: x, "regression": lambda x: restore(models["regression"], x)}
    try:
        pairs = ev.domain_pairs(args.domain, args.content, args.count, ev.TEST_SEED, device)
        results = provenance() | {
            "weights": weights,
            "data": pairs.name,
            "count": args.count,
            "size": args.size,
            "unavailable": ev.available(tuple(ev.METRICS))[1],
        }
        rows = steps.step_curves(
            models["model"],
            pairs,
            args.count,
            args.size,
            starts,
            tuple(args.evaluations or steps.EVALUATIONS),
            progress=lambda line: print(line, flush=True),
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    write_results(args.out, results | {"rows": rows})
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        print(
            f"{sampler} from noise: as good as the longest chain from {steps.fewest(rows, sampler, 'noise')} evaluations on"
        )
    return 0

"""shift: how far activations move between domains, and how touchy the output is -> one results file."""

import argparse

from .shared import DEVICE_HELP, UserError, at_least, load_named_weights, load_weights, pick_device, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser(
        "shift",
        help="measure why models fail elsewhere: shift of activations, sensitivity",
        epilog=(
            "Every domain is compared with the first, the training domain. The sampler's setting is that of the first weights' card."
        ),
    )
    sub.add_argument(
        "--weights",
        nargs="+",
        default=["plain=scenes-plain", "guided=scenes-guided"],
        metavar="[ROW=]NAME",
        help="shipped weights or .safetensors files, each with a name (default: %(default)s)",
    )
    sub.add_argument("--out", required=True, metavar="FILE", help="results file (JSON)")
    sub.add_argument(
        "--content", default="scenes", help="sharp pictures: scenes, photos, or a folder (default: %(default)s)"
    )
    sub.add_argument(
        "--count",
        type=at_least(4),
        default=120,
        metavar="N",
        help="pictures a domain, at least 4 (default: %(default)s)",
    )
    sub.add_argument(
        "--size", type=positive, default=96, metavar="PIXELS", help="side of the crops (default: %(default)s)"
    )
    sub.add_argument("--device", default="auto", help=DEVICE_HELP)
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    import torch

    from .. import evaluate as ev
    from .. import shift
    from ..data import TEST_DOMAINS
    from ..results import provenance, write_results

    device = pick_device(args.device)
    models, weights = load_named_weights(args.weights, device)
    first = next(iter(weights.values()))["source"]
    chosen = load_weights(first, device)[1].get("setting", {})
    setting = ev.Setting(**chosen | {"samples": 1})
    index = torch.arange(args.count)
    domains = ["gopro_like", *TEST_DOMAINS]
    try:
        images = {
            name: ev.domain_pairs(name, args.content, args.count, ev.TEST_SEED, device).crops(index, args.size)[1]
            for name in domains
        }
        held_out = ev.domain_pairs(domains[0], args.content, args.count, ev.VALIDATION_SEED, device).crops(
            index, args.size
        )[1]
        results = provenance() | {
            "content": args.content,
            "count": args.count,
            "size": args.size,
            "reference": domains[0],
            "setting": vars(setting),
            "weights": weights,
        }
        results |= shift.study_shift(models, images, held_out, setting)
    except ValueError as error:
        raise UserError(str(error)) from None
    write_results(args.out, results)
    for name, branches in results["shift"].items():
        for branch, by_domain in branches.items():
            print(f"{name}, {branch}: " + ", ".join(f"{d} {v['shift']['mean']:.3f}" for d, v in by_domain.items()))
    for name, by_domain in results["sensitivity"].items():
        print(f"{name}, sensitivity: " + ", ".join(f"{d} {v['mean']:.2f}" for d, v in by_domain.items()))
    return 0

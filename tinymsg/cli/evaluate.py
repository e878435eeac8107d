"""evaluate: weights x domains x metrics -> one results file."""

import argparse
from pathlib import Path

from .shared import DEVICE_HELP, UserError, at_least, load_named_weights, pick_device, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser(
        "evaluate",
        help="score weights on in-domain and out-of-domain pairs",
        epilog=(
            "The sampler's steps and noise are searched on a validation split of the training domain and then frozen."
        ),
    )
    sub.add_argument(
        "--weights",
        nargs="+",
        default=["scenes-guided", "scenes-plain", "scenes-regression"],
        metavar="[ROW=]NAME",
        help="shipped weights or .safetensors files, each with a name for its row (default: %(default)s)",
    )
    sub.add_argument("--out", required=True, metavar="FILE", help="results file (JSON)")
    sub.add_argument("--domains", nargs="+", metavar="NAME", help="default: the training domain and all test domains")
    sub.add_argument(
        "--pairs",
        metavar="FOLDER",
        help="real pairs (GoPro layout, or input/ and target/) instead of synthetic domains",
    )
    sub.add_argument(
        "--blur", metavar="NAME", help="with --pairs: the folders with blurry pictures, as blur_gamma (default: blur)"
    )
    sub.add_argument(
        "--align",
        type=at_least(0),
        default=0,
        metavar="PIXELS",
        help="with --pairs: score each picture after its best whole-pixel shift of up to so many (default: as it is)",
    )
    sub.add_argument(
        "--content",
        default="scenes",
        help="sharp pictures of the training's kind: scenes, photos, or a folder (default: %(default)s)",
    )
    sub.add_argument(
        "--validation-content",
        metavar="NAME",
        help="of the pairs for choosing the sampler's setting, if it is a folder "
        "of its own (default: --content, from another seed)",
    )
    sub.add_argument(
        "--count",
        type=at_least(2),
        default=200,
        metavar="N",
        help="pairs a domain, at least 2: crops drawn at random with replacement, so that one picture may come "
        "twice and another never (default: %(default)s)",
    )
    sub.add_argument(
        "--validation",
        type=positive,
        default=24,
        metavar="N",
        help="pairs for choosing the sampler's setting (default: %(default)s)",
    )
    sub.add_argument(
        "--size", type=positive, default=96, metavar="PIXELS", help="side of the crops (default: %(default)s)"
    )
    sub.add_argument(
        "--samples",
        type=positive,
        default=4,
        metavar="N",
        help="draws averaged in the -mean rows (default: %(default)s)",
    )
    sub.add_argument("--device", default="auto", help=DEVICE_HELP)
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    import dataclasses
    from functools import partial

    from .. import evaluate as ev
    from ..data import TEST_DOMAINS, get_domain
    from ..datasets.folders import PairedImages
    from ..evaluate import provenance, write_results
    from ..paper.align import overlap
    from ..sample import Setting

    device = pick_device(args.device)
    for name in ("align", "blur"):
        if getattr(args, name) and not args.pairs:
            raise UserError(f"--{name} is for real pairs: it goes with --pairs")
    if args.domains and args.pairs:
        raise UserError(
            "--domains are synthetic, --pairs are real: give one of the two, the other in a second call with its own --out"
        )
    models, weights = load_named_weights(args.weights, device)
    say = lambda line: print(line, flush=True)
    try:
        if args.pairs:
            domains = {Path(args.pairs).name: PairedImages(args.pairs, args.blur or "blur", device=device)}
        else:
            names = args.domains or ["gopro_like", *TEST_DOMAINS]
            for name in names:
                get_domain(name)
            domains = {n: ev.domain_pairs(n, args.content, args.count, ev.TEST_SEED, device) for n in names}
        results = provenance()
        held_out = args.validation_content or args.content
        validation = ev.domain_pairs("gopro_like", held_out, args.validation, ev.VALIDATION_SEED, device)
        diffusion = {label: m for label, m in models.items() if m.config.kind == "diffusion"}
        results["grid"] = {
            label: ev.grid_search(m, validation, args.validation, args.size, progress=say)
            for label, m in diffusion.items()
        }
        setting = Setting(samples=args.samples)
        if diffusion:  # chosen on the validation split of the training domain, for the first model; then frozen for all
            best = ev.choose_cell(results["grid"][next(iter(diffusion))])
            setting = dataclasses.replace(setting, steps=best["steps"], max_noise=best["max_noise"])
        results |= {
            "setting": dataclasses.asdict(setting),
            "setting_chosen_on": validation.name,
            "weights": weights,
            "parameters": {label: sum(p.numel() for p in m.parameters()) for label, m in models.items()},
        }
        results |= ev.evaluate(
            models,
            domains,
            setting,
            args.count,
            args.size,
            device=device,
            progress=say,
            register=partial(overlap, reach=args.align) if args.align else None,
        )
        if args.align:
            results["align"] = args.align
    except ValueError as error:
        raise UserError(str(error)) from None
    write_results(args.out, results)
    print(ev.table(results))
    for metric, reason in results["unavailable"].items():
        print(f"{metric} is unavailable: {reason}")
    return 0

"""evaluate: weights x domains x metrics -> one results file."""

import argparse
from pathlib import Path

from .shared import NAMED, common, load_named_weights, pick_device, positive, say


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "evaluate",
        help="score weights on in-domain and out-of-domain pairs",
        epilog="The sampler's steps and noise are searched on a validation split of the training domain and then "
        "frozen. Test crops are drawn at random with replacement: one picture may come twice and another never.",
    )
    three = ["scenes-guided", "scenes-plain", "scenes-regression"]
    common(sub, "weights", default=three, **NAMED)
    common(sub, "out")
    option = sub.add_argument
    option("--domains", nargs="+", metavar="NAME", help="default: the training domain, all test domains and real")
    common(sub, "content", help="sharp pictures of the training's kind: scenes, photos, or a folder (default: scenes)")
    common(sub, "count", default=200, help="pairs per domain, at least 2 (default: %(default)s)")
    option("--validation", type=positive, default=24, metavar="N", help="pairs for choosing the setting (default: 24)")
    option("--validation-content", metavar="NAME", help="sharp pictures for that, if not --content from another seed")
    common(sub, "size", default=96)
    option("--samples", type=positive, default=4, metavar="N", help="draws averaged in the -mean rows (default: 4)")
    common(sub, "device")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import dataclasses
    from functools import partial

    import torch

    from .. import evaluate as ev
    from ..data import SAMPLES, TEST_DOMAINS, get_domain
    from ..datasets.folders import PairedImages
    from ..model import count_parameters
    from ..paper import choose
    from ..sample import Setting

    device = pick_device(args.device)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)  # what cannot be written shows now, not in an hour
    models, weights = load_named_weights(args.weights, device)
    names = args.domains or ["gopro_like", *TEST_DOMAINS, "real"]
    drawn = [name for name in names if name != "real"]  # real: the pairs of the package, no domain to blur by
    for name in drawn:  # all are known, before the first is drawn
        get_domain(name)
    domains: dict[str, ev.ScoredPairs] = {
        name: ev.domain_pairs(name, args.content, args.count, ev.TEST_SEED, device) for name in drawn
    }
    if "real" in names:
        domains["real"] = PairedImages(SAMPLES, seed=ev.TEST_SEED, device=device)
    for name, pairs in domains.items():  # known now, not in an hour
        if len(pairs.pictures(torch.arange(args.count)).unique()) < 2:
            raise ValueError(f"{name}: {args.count} crops are all of one picture, which has no interval; raise --count")
    held_out = args.validation_content or args.content
    validation = ev.domain_pairs("gopro_like", held_out, args.validation, ev.VALIDATION_SEED, device)
    grid, setting = {}, Setting(samples=args.samples)
    # Chosen on the validation split of the training domain, for the first diffusion model, without guidance if there
    # is one: what others are compared with. Then frozen for all
    diffusion = [label for label, model in models.items() if model.config.kind == "diffusion"]
    if label := min(diffusion, key=lambda label: bool(models[label].config.scales), default=None):
        search = partial(choose.grid_search, steps=choose.GRID_STEPS, max_noise=choose.GRID_MAX_NOISE, progress=say)
        grid[label] = search(models[label], validation, args.validation, args.size)
        best = choose.choose_cell(grid[label])
        setting = dataclasses.replace(setting, steps=best["steps"], max_noise=best["max_noise"])
    results = ev.provenance() | {
        "grid": grid,
        "setting": dataclasses.asdict(setting),
        "setting_chosen_on": validation.name,
        "weights": weights,
        "parameters": {label: count_parameters(model) for label, model in models.items()},
    }
    results |= ev.evaluate(models, domains, setting, args.count, args.size, device=device, progress=say)
    ev.write_results(args.out, results)
    for metric in ("psnr", "lpips"):
        if metric not in results["unavailable"]:
            print(f"{metric.upper()}\n{ev.table(results, metric)}")
    for metric, reason in results["unavailable"].items():
        print(f"{metric} is unavailable: {reason}")
    return 0

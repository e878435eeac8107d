"""photographs: weights x settings on photographs -> scores, and deblur's settings by a stated rule."""

import argparse

from .shared import NAMED, at_least, common, load_named_weights, pick_device, say


def add(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "photographs",
        help="score weights on photographs and choose deblur's settings",
        epilog="The rule is in tinymsg/studies/photographs.py: leave sharp pictures alone, harm no real one, and of "
        "what is left take the nearest to the truth by LPIPS, of real and blurred pictures together.",
    )
    both = ["everyday-plain", "everyday-regression"]
    common(sub, "weights", default=both, **NAMED)
    common(sub, "out")
    option = sub.add_argument
    pairs = "real pairs: blur/ beside sharp/, or input/ and target/ (default: the eight that come with the package)"
    option("--pairs", metavar="FOLDER", help=pairs)
    option("--sharp", required=True, metavar="FOLDER", help="sharp photographs that no training has seen, as Kodak's")
    option("--pairs-size", type=at_least(8), default=448, metavar="PIXELS", help="of a pair's centre (default: 448)")
    common(sub, "size", default=256)
    common(sub, "count", default=24, help="pictures under the domain everyday (default: %(default)s)")
    common(sub, "device")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import dataclasses

    from .. import evaluate as ev
    from ..data import SAMPLES, folder_contents
    from ..datasets.folders import PairedImages
    from ..model import count_parameters, pretrained_names
    from ..studies import photographs as study
    from ..training.validation import centre_crops

    device, most = pick_device(args.device), study.EVALUATIONS
    models, weights = load_named_weights(args.weights, device)
    pairs, sharp = PairedImages(args.pairs or SAMPLES), folder_contents(args.sharp)
    real = centre_crops(pairs, list(range(len(pairs))), len(pairs), args.pairs_size)
    sets = study.photograph_sets(real, sharp, args.size, args.count)
    sets = {name: (y0.to(device), x.to(device)) for name, (y0, x) in sets.items()}
    start = next((weights[label]["source"] for label, m in models.items() if m.config.kind == "regression"), None)
    untrained = {name: study.score(answer, sets) for name, answer in study.UNTRAINED.items()}
    rows: dict[str, list[dict]] = {label: [] for label in models}
    quality: dict[str, dict] = {label: {} for label in models}
    for label, model in models.items():
        for setting in study.candidates(model.config.kind, start):
            row = {"setting": dataclasses.asdict(setting)} | study.score(study.restorer(model, setting), sets)
            rows[label].append(row)
            found = ", ".join(f"{s} {study.mean(row, s, 'psnr'):.2f} {study.mean(row, s, 'lpips'):.3f}" for s in sets)
            say(f"{label}, {setting}: {found}; {row['seconds_a_megapixel']} s per megapixel")
        for name, evaluations in most.items():
            chosen, safe = study.choose(rows[label], untrained["blurry"], evaluations)
            means = study.summarise(chosen["scores"])
            quality[label][name] = {"setting": chosen["setting"], "safe": safe, "scores": means}
            say(f"{label}, {name}: {chosen['setting']}, {'safe' if safe else 'NOT safe'}")
    shipped = [label for label, entry in weights.items() if entry["source"] in pretrained_names()] or list(rows)
    of_any, _ = study.choose([row for label in shipped for row in rows[label]], untrained["blurry"], most["default"])
    default = next(label for label in shipped if any(row is of_any for row in rows[label]))
    say(f"default: {default}")
    results = ev.provenance() | {
        "rule": {name: getattr(study, name) for name in ("LEAST_SHARP", "MOST_HARM", "SHARE_OF_GAIN", "EVALUATIONS")},
        "data": {"real": pairs.name, "blurred": f"everyday on {sharp.name}", "sharp": sharp.name},
        "weights": weights,
        "parameters": {label: count_parameters(model) for label, model in models.items()},
        "default": default,
        "quality": quality,
        "untrained": untrained,
        "rows": rows,
    }
    ev.write_results(args.out, results)
    return 0

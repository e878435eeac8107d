"""Command line: python -m tinymsg deblur | train | evaluate | ablate | publish; --help after any tells more."""

import argparse
import os
import sys
from pathlib import Path

# glibc gives freed blocks of this size back to the system at once, and asks again at the next layer: keeping
# them made one residual block 1.6 times faster on the CPU. Read by malloc at start, hence the re-exec in main().
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456"}


class UserError(Exception):
    """A mistake that one sentence explains; printed without a traceback."""


# --- deblur -------------------------------------------------------------------------------------------------


def _deblur(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from .data import ImageError, read_image, to_display, to_model, write_image
    from .sample import restore

    jobs = _jobs([Path(p) for p in args.inputs], Path(args.output))
    device = _device(args.device)
    model, card = _weights(args.weights, device)
    setting = {"sampler": "ancestral", "steps": 5, "max_noise": 0.9} | card.get("setting", {}) | {"samples": 1}
    setting |= {k: getattr(args, k) for k in setting if getattr(args, k) is not None}
    failed = []
    for source, target in jobs:
        try:
            if target.exists() and not args.overwrite:
                raise ImageError(f"{target} exists; --overwrite replaces it")
            x = to_model(read_image(source))[None].to(device)
            _check_memory(source, x, model.config)
            # Seeded a file: a picture's result does not depend on which others were given
            generator = torch.Generator(device).manual_seed(args.seed)
            with tqdm(desc=source.name, unit="step", leave=False) as bar:
                y0_hat = restore(model, x, **setting, generator=generator,
                                 progress=lambda done, total, bar=bar: _advance(bar, done, total))  # fmt: skip
            write_image(target, to_display(y0_hat[0]), like=source)
            print(f"{source} -> {target}")
        except ImageError as error:
            failed.append(str(error))
        except torch.OutOfMemoryError:
            failed.append(f"{source}: not enough memory on {device} for {x.shape[-1]}x{x.shape[-2]} pixels; make it smaller")
        except KeyboardInterrupt:
            print(f"\nstopped at {source}; files finished so far are whole", file=sys.stderr)
            return 130
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr)
    if len(jobs) > 1:
        print(f"{len(jobs) - len(failed)} of {len(jobs)} pictures deblurred")
    return 1 if failed else 0


def _advance(bar, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _jobs(inputs: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """(source, target) of every picture. One file to one file, or anything into a folder."""
    from .data import IMAGE_SUFFIXES

    if len(inputs) == 1 and not inputs[0].is_dir() and output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        return [(inputs[0], output)]
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; several pictures or a folder need an output folder")
    jobs = []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
            if not found:
                raise UserError(f"no pictures ({', '.join(IMAGE_SUFFIXES)}) in the folder {path}")
            jobs += [(p, output / p.relative_to(path)) for p in found]
        else:
            name = path.name if path.suffix.lower() in IMAGE_SUFFIXES else path.name + ".png"
            jobs.append((path, output / name))
    targets = [target for _, target in jobs]
    twice = next((t for t in targets if targets.count(t) > 1), None)
    if twice is not None:
        raise UserError(f"two inputs would both be written to {twice}; deblur them in two calls")
    return jobs


def _weights(name: str, device):
    """(model, card) of shipped weights by name, or of a safetensors file."""
    from .model import load_model, model_card, pretrained, pretrained_names

    if name in pretrained_names():
        return pretrained(name, device), model_card(name)
    try:
        return load_model(name, device), {}
    except FileNotFoundError:
        raise UserError(f"no weights {name!r}: neither a file nor shipped ({', '.join(pretrained_names())})") from None
    except ValueError as error:
        raise UserError(str(error)) from None


# Peak of a restoration per pixel and channel of the first level, without the weights. Measured on the CPU in bf16
# at 1280x720 (29) and 640x360 (33), and in fp32 at 1280x720 (54)
_BYTES_PER_PIXEL_AND_CHANNEL = {True: 35, False: 65}


def _check_memory(source: Path, x, config) -> None:
    """Refuse, before the system would kill us, a picture that cannot fit."""
    import torch

    from .data import ImageError
    from .train import use_bf16

    need = x.shape[-1] * x.shape[-2] * config.widths[0] * _BYTES_PER_PIXEL_AND_CHANNEL[use_bf16(config.precision, x.device)]
    if x.device.type == "cuda":
        free = torch.cuda.mem_get_info(x.device)[0]
    elif Path("/proc/meminfo").exists():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        return
    if need > free:
        raise ImageError(f"{source}: {x.shape[-1]}x{x.shape[-2]} pixels need about {need / 1e9:.0f} GB of memory, "
                         f"{free / 1e9:.0f} GB are free; make the picture smaller")  # fmt: skip


# --- train --------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    import torch

    from . import train

    config = _config(args)
    device = train.join_processes(_device(args.device))
    out = Path(args.out)
    state = train.TrainState(config, device)
    try:
        path, damaged = train.resume(out, state)
        batches = train.make_batches(config, device, args.data)
    except ValueError as error:
        raise UserError(str(error)) from None
    for sentence in damaged:
        print(sentence, file=sys.stderr)
    if train.rank_and_processes()[0] == 0:
        if path is not None:
            print(f"resuming from {path} at step {state.step}")
        parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
        print(f"{config.kind}, guidance scales {config.scales or 'none'}, {parameters:.2f} M parameters, "
              f"{'bf16' if state.bf16 else 'fp32'} on {device}: {config.steps} steps of {config.batch} crops "
              f"{config.crop}x{config.crop} of {batches.pairs.name}")  # fmt: skip
    try:
        train.run(state, batches, out, log_every=args.log_every, save_every=args.save_every)
    except KeyboardInterrupt:
        print(f"\nstopped at step {state.step}; the same command goes on from there", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError:
        raise UserError(f"out of memory on {device}: lower batch or crop (--set batch=8 crop=64)") from None
    except (train.NotFiniteError, ValueError) as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; the last checkpoint there is intact") from None
    finally:
        train.leave_processes()
    return 0


def _config(args: argparse.Namespace):
    """Profile, then --set, then the arm."""
    import dataclasses
    import typing

    from .model import PROFILES, Config, plain_twin

    hints = typing.get_type_hints(Config)
    changes = dict(PROFILES[args.profile])
    for item in args.set or []:
        key, _, text = item.partition("=")
        if key not in hints:
            raise UserError(f"--set {item}: unknown setting {key!r}; known: {', '.join(hints)}")
        try:
            changes[key] = _parse(text, hints[key])
        except ValueError:
            raise UserError(f"--set {item}: {text!r} is not a value for {key} ({hints[key]})") from None
    try:
        config = dataclasses.replace(Config(), **changes)
        return config if args.arm == "guided" else plain_twin(config, "regression" if args.arm == "regression" else "diffusion")
    except ValueError as error:
        raise UserError(str(error)) from None


def _parse(text: str, hint) -> object:
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if hint in (int, float, str):
        return hint(text)
    return tuple(int(part) for part in text.split(",") if part)  # the remaining settings are lists of integers


# --- evaluate, ablate, publish ------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> int:
    import dataclasses

    import torch

    from . import evaluate as ev
    from .data import TEST_DOMAINS, PairedImages, get_domain
    from .results import provenance, sha256, write_results

    device = _device(args.device)
    models, weights = {}, {}
    for item in args.weights:
        label, _, source = item.rpartition("=")
        label = label or item.rsplit("-", 1)[-1].removesuffix(".safetensors")
        models[label], _ = _weights(source, device)
        path = Path(source) if Path(source).is_file() else Path(__file__).parent / "weights" / f"{source}.safetensors"
        weights[label] = {"source": source, "sha256": sha256(path), "config": models[label].config.to_dict()}
    say = lambda line: print(line, flush=True)  # noqa: E731
    try:
        if args.pairs:
            domains = {Path(args.pairs).name: PairedImages(args.pairs, device=device)}
        else:
            names = args.domains or ["gopro_like", *TEST_DOMAINS]
            for name in names:
                get_domain(name)
            domains = {n: ev.domain_pairs(n, args.content, args.count, ev.TEST_SEED, device) for n in names}
        results = provenance()
        validation = ev.domain_pairs("gopro_like", args.content, args.validation, ev.VALIDATION_SEED, device)
        diffusion = {label: m for label, m in models.items() if m.config.kind == "diffusion"}
        results["grid"] = {label: ev.grid_search(m, validation, args.validation, args.size, progress=say)
                           for label, m in diffusion.items()}  # fmt: skip
        setting = ev.Setting(samples=args.samples)
        if diffusion:  # chosen on the validation split of the training domain, for the first model; then frozen for all
            best = ev.choose_cell(results["grid"][next(iter(diffusion))])
            setting = dataclasses.replace(setting, steps=best["steps"], max_noise=best["max_noise"])
        results |= {"setting": dataclasses.asdict(setting), "weights": weights, "parameters": {
            label: sum(p.numel() for p in m.parameters()) for label, m in models.items()}}  # fmt: skip
        results |= ev.evaluate(models, domains, setting, args.count, args.size, device=device, progress=say)
    except (ValueError, torch.OutOfMemoryError) as error:
        raise UserError(str(error)) from None
    write_results(args.out, results)
    print(ev.table(results))
    for metric, reason in results["unavailable"].items():
        print(f"{metric} is unavailable: {reason}")
    return 0


def _ablate(args: argparse.Namespace) -> int:
    from . import toy
    from .results import provenance, read_results, write_results

    out = Path(args.out)
    unknown = [arm for arm in args.arms or [] if arm not in toy.ARMS]
    if unknown:
        raise UserError(f"unknown arm {unknown[0]!r}; known: {', '.join(toy.ARMS)}")
    results = provenance() | {"steps": args.steps, "runs": []}
    if out.exists():  # goes on where an earlier call stopped, if that had the same budget
        earlier = read_results(out)
        if earlier.get("steps") != args.steps:
            raise UserError(f"{out} holds runs of {earlier.get('steps')} steps; use another --out for {args.steps}")
        results["runs"] = earlier["runs"]
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    for seed in range(args.seeds):
        for arm in args.arms or toy.ARMS:
            if (arm, seed) not in done:
                run = toy.run_arm(arm, args.steps, seed)
                results["runs"].append(run)
                write_results(out, results)
                print(f"{arm}, seed {seed}: " + ", ".join(f"{d} {s['psnr']['mean']:.1f}" for d, s in run["scores"].items()), flush=True)
    return 0


def _publish(args: argparse.Namespace) -> int:
    """Ship trained weights: copy them, and write the card from the run's and the evaluation's own records."""
    import json
    import shutil

    from .model import WEIGHTS, load_model
    from .results import read_results, sha256, write_results

    run = Path(args.run_folder)
    source = run / "weights.safetensors"
    try:
        load_model(source)
        results = read_results(args.results)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    label = next((k for k, w in results["weights"].items() if w["sha256"] == sha256(source)), None)
    if label is None:
        raise UserError(f"{args.results} holds no scores of {source}: evaluate these very weights first")
    target = WEIGHTS / f"{args.name}.safetensors"
    shutil.copyfile(source, target)
    card = json.loads((run / "run.json").read_text()) | {
        "name": args.name, "sha256": sha256(target), "parameters": results["parameters"][label],
        "setting": results["setting"], "unavailable": results["unavailable"],
        "scores": {d: {row: s for row, s in r["scores"].items() if row in ("blurry", label, f"{label}-mean")}
                   for d, r in results["domains"].items()},
    }  # fmt: skip
    write_results(WEIGHTS / f"{args.name}.json", card)
    print(f"{target} and its card written")
    return 0


# --- shared -------------------------------------------------------------------------------------------------


def _device(name: str):
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def parser() -> argparse.ArgumentParser:
    """The whole command line. Imports nothing heavy, so that --help answers at once."""
    top = argparse.ArgumentParser(
        prog="python -m tinymsg", description="Deblur photographs with structure-guided diffusion, train and evaluate it.",
        epilog="'python -m tinymsg COMMAND --help' explains one command.")  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    device_help = "cpu, cuda, cuda:1, ... (default: the GPU if there is one)"

    sub = commands.add_parser("deblur", help="deblur pictures or folders of pictures", epilog=(
        "Example: python -m tinymsg deblur photo.jpg -o sharp.png. The shipped weights are small and were trained on "
        "procedural scenes with short motion blur: expect a modest effect on such blur, and little on others."))  # fmt: skip
    sub.add_argument("inputs", nargs="+", metavar="IN", help="pictures, or folders of them")
    sub.add_argument("-o", "--output", required=True, metavar="OUT", help="a picture for one input, else a folder")
    sub.add_argument("--weights", default="scenes-guided", metavar="NAME", help="shipped weights or a .safetensors file (default: %(default)s)")
    sub.add_argument("--steps", type=_positive, metavar="N", help="network evaluations a sample: more is sharper and slower (default: the weights' own best)")
    sub.add_argument("--max-noise", type=_share, metavar="B", help="largest noise step, between 0 and 1 (default: likewise)")
    sub.add_argument("--samples", type=_positive, metavar="N", help="draws to average: more is smoother and safer (default: 1)")
    sub.add_argument("--sampler", choices=("ancestral", "ddim", "dpm_solver"), help="how noise is taken away (default: likewise)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same picture (default: %(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace output files that exist")
    sub.add_argument("--device", default="auto", help=device_help)
    sub.set_defaults(run=_deblur)

    sub = commands.add_parser("train", help="train a model; the same command goes on after an interruption")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="where checkpoints, log and final weights go")
    sub.add_argument("--arm", choices=("guided", "plain", "regression"), default="guided",
                     help="guided: the whole method; plain: without guidance, widened to as many parameters; "
                          "regression: the same network without diffusion (default: %(default)s)")  # fmt: skip
    sub.add_argument("--profile", choices=("cpu", "gpu", "full"), default="cpu", help="sizes and budget (default: %(default)s)")
    sub.add_argument("--data", metavar="FOLDER", help="train on real pairs (GoPro layout) instead of synthetic ones")
    sub.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="change single settings, e.g. --set steps=500 batch=8 widths=32,64,96")
    sub.add_argument("--log-every", type=_positive, default=100, metavar="N", help="steps between lines of log.csv (default: %(default)s)")
    sub.add_argument("--save-every", type=_positive, default=500, metavar="N", help="steps between checkpoints (default: %(default)s)")
    sub.add_argument("--device", default="auto", help=device_help)
    sub.set_defaults(run=_train)

    sub = commands.add_parser("evaluate", help="score weights on in-domain and out-of-domain pairs", epilog=(
        "The sampler's steps and noise are searched on a validation split of the training domain and then frozen."))  # fmt: skip
    sub.add_argument("--weights", nargs="+", default=["scenes-guided", "scenes-plain", "scenes-regression"], metavar="[ROW=]NAME",
                     help="shipped weights or .safetensors files, each with a name for its row (default: %(default)s)")  # fmt: skip
    sub.add_argument("--out", required=True, metavar="FILE", help="results file (JSON)")
    sub.add_argument("--domains", nargs="+", metavar="NAME", help="default: the training domain and all test domains")
    sub.add_argument("--pairs", metavar="FOLDER", help="real pairs (GoPro layout, or input/ and target/) instead of synthetic domains")
    sub.add_argument("--content", default="scenes", help="sharp pictures: scenes, photos, or a folder (default: %(default)s)")
    sub.add_argument("--count", type=_positive, default=200, metavar="N", help="pairs a domain (default: %(default)s)")
    sub.add_argument("--validation", type=_positive, default=24, metavar="N", help="pairs for choosing the sampler's setting (default: %(default)s)")
    sub.add_argument("--size", type=_positive, default=96, metavar="PIXELS", help="side of the crops (default: %(default)s)")
    sub.add_argument("--samples", type=_positive, default=4, metavar="N", help="draws averaged in the -mean rows (default: %(default)s)")
    sub.add_argument("--device", default="auto", help=device_help)
    sub.set_defaults(run=_evaluate)

    sub = commands.add_parser("ablate", help="train and score the variants of the one-dimensional toy")
    sub.add_argument("--out", required=True, metavar="FILE", help="results file (JSON); an existing one is continued")
    sub.add_argument("--arms", nargs="+", metavar="NAME", help="default: all")
    sub.add_argument("--seeds", type=_positive, default=2, metavar="N", help="trainings of each variant (default: %(default)s)")
    sub.add_argument("--steps", type=_positive, default=800, metavar="N", help="optimiser steps each (default: %(default)s)")
    sub.set_defaults(run=_ablate)

    sub = commands.add_parser("publish", help="ship evaluated weights with their model card (for maintainers)")
    sub.add_argument("run_folder", metavar="RUN", help="the --out folder of a finished train")
    sub.add_argument("--name", required=True, help="the weights' name")
    sub.add_argument("--results", required=True, metavar="FILE", help="evaluate's results file with these very weights")
    sub.set_defaults(run=_publish)
    return top


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 some files failed, 2 a mistake in the call."""
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except UserError as error:
        print(f"tinymsg: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ.update(ALLOCATOR)
        os.execv(sys.executable, [sys.executable, "-m", "tinymsg", *sys.argv[1:]])
    sys.exit(main())

"""Command line: python -m tinymsg deblur | train | evaluate. `--help` after any of them tells more."""

import argparse
import os
import sys
from pathlib import Path

# glibc gives freed blocks of this size back to the system at once, and asks again at the next layer: keeping
# them made one residual block 1.6 times faster on the CPU. Read by malloc at start, hence the re-exec in main().
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456"}


class UserError(Exception):
    """A mistake that one sentence explains; printed without a traceback."""


def _train(args: argparse.Namespace) -> int:
    import torch

    from . import train

    config = _config(args)
    device = _device(args.device)
    out = Path(args.out)
    state = train.TrainState(config, device)
    path, damaged = train.resume(out, state)
    for sentence in damaged:
        print(sentence, file=sys.stderr)
    if path is not None:
        print(f"resuming from {path} at step {state.step}")
    batches = train.make_batches(config, device, args.data)
    print(f"{config.kind}, {'guided ' + str(config.scales) if config.scales else 'plain'}, "
          f"{sum(p.numel() for p in state.model.parameters()) / 1e6:.2f} M parameters, "
          f"{'bf16' if state.bf16 else 'fp32'} on {device}: {config.steps} steps of {config.batch} crops "
          f"{config.crop}x{config.crop} of {batches.pairs.name}")  # fmt: skip
    try:
        train.run(state, batches, out, log_every=args.log_every, save_every=args.save_every)
    except KeyboardInterrupt:
        print(f"\nstopped at step {state.step}; the same command goes on from there", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory on {device}: lower batch or crop (--set batch=8 crop=64)") from error
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
    top = argparse.ArgumentParser(prog="python -m tinymsg", description=__doc__.split(":")[0] + " of tinymsg.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sub = commands.add_parser("train", help="train a model; run it again to go on after an interruption")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="where checkpoints, log and final weights go")
    sub.add_argument("--arm", choices=("guided", "plain", "regression"), default="guided",
                     help="guided: the whole method; plain: without guidance, widened to as many parameters; "
                          "regression: the same network without diffusion (default: %(default)s)")  # fmt: skip
    sub.add_argument("--profile", choices=("cpu", "gpu", "full"), default="cpu", help="sizes and budget (default: %(default)s)")
    sub.add_argument("--data", metavar="FOLDER", help="train on real pairs (GoPro layout) instead of synthetic ones")
    sub.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="change single settings, e.g. --set steps=500 batch=8 widths=32,64,96")
    sub.add_argument("--log-every", type=int, default=100, metavar="N", help="steps between lines of log.csv (default: %(default)s)")
    sub.add_argument("--save-every", type=int, default=500, metavar="N", help="steps between checkpoints (default: %(default)s)")
    sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    sub.set_defaults(run=_train)
    return top


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

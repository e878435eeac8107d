"""train: profile, settings and arm -> a run folder; goes on after an interruption."""

import argparse
import sys
from pathlib import Path

from .shared import DEVICE_HELP, UserError, pick_device, positive


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser("train", help="train a model; the same command goes on after an interruption")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="where checkpoints, log and final weights go")
    sub.add_argument("--arm", choices=("guided", "plain", "regression"), default="guided",
                     help="guided: the whole method; plain: without guidance, widened to as many parameters; "
                          "regression: the same network without diffusion (default: %(default)s)")  # fmt: skip
    sub.add_argument("--profile", choices=("cpu", "gpu", "full"), default="cpu", help="sizes and budget (default: %(default)s)")
    sub.add_argument("--data", metavar="FOLDER", help="train on real pairs (GoPro layout) instead of synthetic ones")
    sub.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="change single settings, e.g. --set steps=500 batch=8 widths=32,64,96")
    sub.add_argument("--log-every", type=positive, default=100, metavar="N", help="steps between lines of log.csv (default: %(default)s)")
    sub.add_argument("--save-every", type=positive, default=500, metavar="N", help="steps between checkpoints (default: %(default)s)")
    sub.add_argument("--device", default="auto", help=DEVICE_HELP)
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    import torch

    from .. import train

    config = _config(args)
    device = train.join_processes(pick_device(args.device))
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

    from ..model import PROFILES, Config, plain_twin

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

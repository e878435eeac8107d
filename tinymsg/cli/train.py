"""train: profile, settings and arm -> a run folder; goes on after an interruption."""

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from .shared import DEVICE_HELP, pick_device, positive

ARM_HELP = """guided: the whole method; control: its guidance branch without the regression loss; plain: without
guidance, widened to as many parameters; regression: as plain, without diffusion (default: %(default)s)"""
# How gloo, NCCL and the store say that another process is gone or silent
LOST = ("connection closed", "connection reset", "connection refused", "timed out", "timeout", "broken pipe", "nccl")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its arguments."""
    sub = commands.add_parser("train", help="train a model; the same command goes on after an interruption")
    option = sub.add_argument
    option("--out", metavar="FOLDER", help="where checkpoints, logs and final weights go")
    option("--arm", choices=("guided", "control", "plain", "regression"), default="guided", help=ARM_HELP)
    what = "begin with trained weights (shipped, a file, or hf://owner/name), of this network or without guidance"
    option("--start", metavar="WEIGHTS", help=what)
    option(
        "--profile",
        choices=("cpu", "gpu", "everyday", "full"),
        default="cpu",
        help="sizes and budget (default: %(default)s)",
    )
    option("--set", nargs="+", metavar="KEY=VALUE", help="change settings, e.g. --set steps=500 widths=32,64,96")
    option("--device", default="auto", help=DEVICE_HELP)
    option("--estimate", action="store_true", help="print time, memory and what fits common cards; train nothing")

    number: dict = {"type": positive, "metavar": "N"}

    option = sub.add_argument_group("data").add_argument
    option("--data", metavar="DATA", help="real pairs: a data set (gopro, ...), a packed folder or one of pictures")
    option("--root", default="data", metavar="FOLDER", help="where named data sets lie (default: %(default)s)")
    option("--blur", choices=("blur", "blur_gamma"), default="blur", help="which of GoPro's (default: %(default)s)")

    option = sub.add_argument_group("validation: out/validation.csv, out/validation/STEP.png").add_argument
    what = "steps between validations; with --data, the last training sequence is held out, the test set not looked at"
    option("--validate-every", help=what, **number)
    option("--validation", metavar="DATA", help="validate on these pairs instead; of a data set, on its test split")
    option("--validation-count", default=6, help="pictures (default: %(default)s)", **number)
    what = "pixels of their centres (default: %(default)s; synthetic ones have the training crop's)"
    option("--validation-size", default=256, help=what, **number)

    option = sub.add_argument_group("logs and checkpoints").add_argument
    option("--log-every", default=100, help="steps between lines of log.csv (default: %(default)s)", **number)
    option("--save-every", default=500, help="steps between checkpoints (default: %(default)s)", **number)
    option("--save-minutes", type=float, default=15, metavar="M", help="and minutes; 0: none (default: %(default)s)")
    what = "go on although the data, or settings of the optimisation (lr, steps, ...), are not the checkpoint's"
    option("--accept-changes", action="store_true", help=what)
    what = "under torchrun: how long they wait for one that is silent (default: %(default)s)"
    option("--timeout-minutes", type=float, default=10, metavar="M", help=what)
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    from ..training import parallel
    from ..training.checkpoint import training_lock

    recipe = _recipe(args)
    if args.estimate:
        return _estimate(args, recipe)
    if args.out is None:
        raise ValueError("--out FOLDER is missing: where checkpoints, logs and final weights go")
    if args.validation is not None and args.validate_every is None:
        raise ValueError("--validation needs --validate-every N")
    device = pick_device(args.device)
    try:
        device = parallel.join_processes(device, args.timeout_minutes)
        with contextlib.ExitStack() as held:
            parallel.from_first(lambda: held.enter_context(training_lock(args.out)))
            return _train(args, recipe, device)
    except OSError as error:
        what = f"{error.filename or args.out}: {error.strerror or error}"
        raise ValueError(f"{what}; a checkpoint that is in {args.out} is intact") from None
    except RuntimeError as error:
        if sentence := _sentence(error, device, parallel.rank_and_processes()[1]):
            raise ValueError(sentence) from None
        raise
    finally:
        parallel.leave_processes()


def _sentence(error: RuntimeError, device, processes: int) -> str | None:
    """What went wrong and what to do, in one sentence; None for an error of the program itself."""
    from ..machine import out_of_memory
    from ..train import NotFiniteError

    text = str(error)
    if isinstance(error, NotFiniteError):
        return text
    if out_of_memory(error):
        advice = "raise accumulate (--set accumulate=4), or lower batch or crop; --estimate says what fits"
        return f"out of memory on {device}: {advice}"
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    if isinstance(error, TorchDynamoException) or "Failed to find C compiler" in text:
        cause = getattr(error, "inner_exception", error)
        why = f"{type(cause).__name__}: {cause}".partition("\n")[0][:200]
        advice = "it needs a C compiler and Python's headers; install them or use --set compile="
        return f"torch.compile failed ({why}): {advice}"
    if processes > 1 and any(sign in text.lower() for sign in LOST):
        why = text.partition("\n")[0][:200]
        return f"another process of this training ended or does not answer ({why}); the last checkpoint is intact"
    return None


def _train(args: argparse.Namespace, recipe, device) -> int:
    """Resume, say what will be done, do it; the folder is ours."""
    from ..machine import sha256
    from ..model import count_parameters, pretrained, weights_path
    from ..train import TrainState
    from ..training import checkpoint, estimate, parallel, runs
    from .sources import open_data

    model, start = None, {}
    if args.start:
        model = checkpoint.begin_from(pretrained(args.start), recipe)
        start = {"started_from": f"{args.start}, SHA-256 {sha256(weights_path(args.start))}"}
    state = TrainState(recipe, device, model)
    validate = args.validate_every is not None and (args.validation or True)
    pictures = args.validation_count, args.validation_size
    batches, identity, watched = open_data(recipe, device, args.data, args.blur, args.root, validate, *pictures)
    state.data = identity | start
    path, passed_over = checkpoint.resume(args.out, state, args.accept_changes)
    rank, processes = parallel.rank_and_processes()
    if rank == 0:
        for sentence in passed_over:
            print(sentence, file=sys.stderr)
        if path is not None:
            print(f"resuming from {path} at step {state.step}")
        c, parameters = recipe.training, f"{count_parameters(state.model) / 1e6:.2f} M parameters"
        print(
            f"{recipe.network.kind}, guidance scales {recipe.network.scales or 'none'}, {parameters}, "
            f"{'bf16' if state.bf16 else 'fp32'} on {device}: {c.steps} steps of {c.batch} crops {c.crop}x{c.crop} of "
            f"{batches.pairs.name}"
        )
        print(estimate.estimate_line(state, processes), flush=True)
    plan = runs.Plan(args.log_every, args.save_every, args.save_minutes, args.validate_every or 0)
    stopped = runs.run(state, batches, Path(args.out), plan, watched)
    if stopped and rank == 0:
        what = f"stopped at step {state.step} by {signal.Signals(stopped).name}, checkpoint written"
        print(f"\n{what}; the same command goes on from there", file=sys.stderr)
    return 128 + stopped if stopped else 0


def _estimate(args: argparse.Namespace, recipe) -> int:
    """Print what a training would take; needs no data."""
    from ..model import count_parameters
    from ..train import TrainState
    from ..training import estimate

    state, c = TrainState(recipe, pick_device(args.device)), recipe.training
    print(
        f"{args.profile}, {args.arm}: {count_parameters(state.model) / 1e6:.2f} M parameters, "
        f"{estimate.gigaflops(recipe):.1f} GFLOP to train on one crop, {c.batch} crops of {c.crop}x{c.crop} per step"
    )
    print(f"on {state.device}, {'bf16' if state.bf16 else 'fp32'}: {estimate.estimate_line(state)}")
    print(
        f"\nwhat fits (computed for bf16 on CUDA, eager; {estimate.CONTEXT / 1e9:.1f} GB for CUDA itself, "
        f"{estimate.SPARE:.0%} spare), with --set accumulate=...:\n\n{estimate.table_text(recipe)}"
    )
    return 0


def _recipe(args: argparse.Namespace):
    """Profile, then --set, then the arm."""
    from ..model import Recipe, plain_twin
    from ..training.profiles import profile

    recipe, changes = profile(args.profile), {}
    for item in args.set or []:
        key, _, text = item.partition("=")
        changes[key] = _parse(item, text, type(recipe.settings().get(key, "")))
    if args.arm == "control":
        changes["target"] = "none"
    recipe = recipe.change(**changes)
    if args.arm in ("guided", "control"):
        return recipe
    return Recipe(plain_twin(recipe.network, "diffusion" if args.arm == "plain" else "regression"), recipe.training)


def _parse(item: str, text: str, kind: type) -> object:
    """The value of --set KEY=VALUE in the type that the setting has; the remaining ones are lists of integers."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        return tuple(int(part) for part in text.split(",") if part)
    except (ValueError, KeyError):
        raise ValueError(f"--set {item}: {text!r} is not a value of type {kind.__name__}") from None

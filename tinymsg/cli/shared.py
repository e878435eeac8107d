"""What the commands share: devices, weights, records, common arguments."""

import argparse
import os
from collections.abc import Callable
from functools import partial

DEVICE_HELP = "cpu, cuda, cuda:1, ... (default: the GPU if there is one)"


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: integers of at least `least`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return integer


positive = at_least(1)


def share(text: str) -> float:
    """argparse type: a number between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text}")
    return value


# Arguments of several commands
COMMON: dict[str, dict] = {
    "device": {"default": "auto", "help": DEVICE_HELP},
    "out": {"required": True, "metavar": "FILE", "help": "results file (JSON)"},
    "weights": {"metavar": "NAME", "help": "shipped weights, a file, or hf://owner/name (default: %(default)s)"},
    "content": {"default": "scenes", "help": "sharp pictures: scenes, photos, or a folder (default: %(default)s)"},
    "count": {"type": at_least(2), "metavar": "N", "help": "pictures, at least 2 (default: %(default)s)"},
    "size": {"type": at_least(8), "metavar": "PIXELS", "help": "side of the crops (default: %(default)s)"},
}
NAMED: dict = {  # --weights, where it is several
    "nargs": "+",
    "metavar": "[ROW=]NAME",
    "help": "shipped weights, files, or hf://owner/name, each with a name for its row (default: %(default)s)",
}


def common(command: argparse.ArgumentParser, name: str, **changes) -> None:
    """Add an argument of COMMON, as it is or with changes."""
    command.add_argument(f"--{name}", **COMMON[name] | changes)


def pick_device(name: str):
    """The torch device of a --device argument; ValueError if it cannot be used here."""
    import torch

    from ..machine import accelerator

    try:
        device = accelerator() if name == "auto" else torch.device(name)
        if "LOCAL_RANK" not in os.environ:  # under torchrun each process takes its own, and no memory of the first
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def load_named_weights(items: list[str], device) -> tuple[dict, dict]:
    """[ROW=]NAME arguments -> ({row: model}, {row: source, SHA-256 and configuration}); NAME as for `pretrained`.

    A row without a name has the last word of its weights' name. Raises: ValueError for a name that is taken.
    """
    from ..machine import sha256
    from ..model import pretrained, weights_path

    models, identities = {}, {}
    for item in items:
        row, _, name = item.rpartition("=")
        row = row or name.removesuffix(".safetensors").rsplit("-", 1)[-1]
        if row in (*models, "blurry", "sharp") or row.endswith(("-mean", "-SA")):
            raise ValueError(f"a row cannot be named {row!r}: the name is taken; give another by ROW={name}")
        models[row] = pretrained(name, device)
        identities[row] = {"source": name, "sha256": sha256(weights_path(name)), "config": models[row].config.to_dict()}
    return models, identities


def read_record(path, entries: tuple[str, ...], advice: str) -> dict:
    """A results file that has these entries; ValueError, ending in the advice, if it is none."""
    from ..evaluate import read_results

    try:
        record = read_results(path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__  # no file, no JSON, or no table in it
        what = str(error) if type(error) is ValueError else f"{path} is not a results file ({reason})"
        raise ValueError(f"{what}; {advice}") from None
    if missing := [name for name in entries if name not in record]:
        raise ValueError(f"{path} is a results file of another kind, without {', '.join(missing)}; {advice}")
    return record


say = partial(print, flush=True)  # at once, wherever the output goes

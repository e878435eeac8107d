"""What a training learns from, and what it is validated on."""

from collections.abc import Sized
from dataclasses import dataclass

import torch

from ..data import Batches, Pairs, SyntheticPairs, make_contents
from ..datasets.layouts import DATASETS
from ..datasets.packed import open_pairs
from ..model import Recipe
from ..training.parallel import rank_and_processes
from ..training.validation import Validation, WithoutHeldOut, centre_crops, choose_held_out, synthetic_validation


@dataclass(frozen=True)
class Data:
    """What a run learns from (this process's share), and what it is validated on."""

    batches: Batches
    identity: dict  # for run.json and the checkpoints
    validation: Validation | None


def open_data(
    recipe: Recipe,
    device: torch.device,
    source: str | None = None,
    blur: str = "blur",
    root: str = "data",
    validate: bool = False,
    validation: str | None = None,
    pictures: int = 6,
    size: int = 256,
) -> Data:
    """The data of a run: real pairs, or the recipe's synthetic domain.

    Args:
        source: the name of a data set, a packed folder or a folder of pairs; None: the recipe's content and domain (or
            the data set, where its content is the name of one).
        validate: validate on real pairs that are held out, or on synthetic ones (see `synthetic_validation`).
        validation: where those come from instead: another source (of a data set's name: its test split).
        pictures, size: how many, and how many pixels of their centres.
    Raises: ValueError, one sentence, for what is missing.
    """
    c, (rank, processes) = recipe.training, rank_and_processes()
    if c.batch % (processes * c.accumulate):
        what = f"{c.batch} does not divide among {processes} x {c.accumulate}"
        raise ValueError(f"batch is the total over all processes and micro-batches: {what}")
    watched = None
    if source is None and c.content in DATASETS:  # profile full
        source = c.content
    if source is None:
        contents = make_contents(c.content, c.content_count, seed=0)
        pairs: Pairs = SyntheticPairs(contents, c.domain, c.seed, device, gray=recipe.network.channels == 1)
        identity = describe(pairs)
        if validate and validation is None:
            watched = synthetic_validation(recipe, pictures, device)
    else:
        real = pairs = open_pairs(source, "train", blur, c.seed, device, root)
        identity = describe(pairs) | {"blur": blur}
        if validate and validation is None:
            held_out, words = choose_held_out(real.names)
            name = f"{min(pictures, len(held_out))} of {words}"
            watched = Validation(centre_crops(real, held_out, pictures, size), name)
            pairs = WithoutHeldOut(real, held_out)
            identity["held_out"] = words
    if validate and validation is not None:
        kind = "blur" if validation in DATASETS and validation != "gopro" else blur  # a choice of GoPro alone
        other = open_pairs(validation, "test", kind, 0, device, root)
        watched = Validation(centre_crops(other, list(range(len(other))), pictures, size), f"pictures of {other.name}")
    return Data(Batches(pairs, c.batch, c.crop, rank, processes), identity, watched)


def describe(pairs: Pairs) -> dict:
    """What a source of pairs is: its name, its number of pairs, the hash of its manifest, as far as it has them."""
    known = {
        "name": pairs.name,
        "pairs": len(pairs) if isinstance(pairs, Sized) else None,
        "manifest_sha256": getattr(pairs, "manifest", {}).get("identity"),
    }
    return {key: value for key, value in known.items() if value is not None}

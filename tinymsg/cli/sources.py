"""What a training learns from, and what it is validated on."""

import torch

from ..data import Batches, Pairs, SyntheticPairs, make_contents
from ..datasets.layouts import DATASETS
from ..datasets.packed import PackedPairs, open_pairs
from ..model import Recipe
from ..training.parallel import rank_and_processes
from ..training.validation import Validation, WithoutHeldOut, centre_crops, choose_held_out, synthetic_validation
from .shared import say


def open_data(
    recipe: Recipe,
    device: torch.device,
    source: str | None = None,
    blur: str = "blur",
    root: str = "data",
    validate: bool | str = False,
    pictures: int = 6,
    size: int = 256,
) -> tuple[Batches, dict, Validation | None]:
    """(this process's batches, what the run's records say of them, what it is validated on).

    Args:
        source: as for `open_pairs`; None: the recipe's content and domain, or the data set that its content names.
        validate: on real pairs that are held out, or synthetic ones; or on those of another source, a set's test split.
        pictures, size: how many of them, and how many pixels of their centres.
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
        identity: dict = {"name": pairs.name}
        if validate is True:
            watched = synthetic_validation(recipe, pictures, device)
    else:
        real = pairs = open_pairs(source, "train", blur, c.seed, device, root)
        identity = {"name": real.name, "pairs": len(real), "blur": blur}
        if isinstance(real, PackedPairs):
            identity["manifest_sha256"] = real.manifest["identity"]
        elif rank == 0:
            say(f"whole pictures are decoded for every crop: tinymsg pack {source} does it once, which saves the time")
        if validate is True:
            held_out, identity["held_out"] = choose_held_out(real.names)
            name = f"{min(pictures, len(held_out))} of {identity['held_out']}"
            watched = Validation(centre_crops(real, held_out, pictures, size), name)
            pairs = WithoutHeldOut(real, held_out)
    if isinstance(validate, str):
        kind = "blur" if validate in DATASETS and validate != "gopro" else blur  # a choice of GoPro alone
        other = open_pairs(validate, "test", kind, 0, device, root)
        watched = Validation(centre_crops(other, list(range(len(other))), pictures, size), f"pictures of {other.name}")
    return Batches(pairs, c.batch, c.crop, rank, processes), identity, watched

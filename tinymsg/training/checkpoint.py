"""Where a training begins: checkpoints that survive anything, other weights; and the lock of its folder."""

import contextlib
import os
import re
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch.nn.functional import silu
from torch.nn.init import zeros_

from ..guidance import MultiscaleGuidance
from ..machine import atomic_write
from ..model import Model, Recipe, build_model
from ..train import TrainState
from ..unet import ResBlock, UNet
from .parallel import from_first, rank_and_processes

LOCK, HOLDER = "lock", "holder"  # in the run's folder: the lock, and "PROCESS on MACHINE" of who holds it
# Settings that may differ from the checkpoint's: these always, since the result is the same but for rounding ...
FREE = ("accumulate", "compile")
# ... and these where that is asked for (accept_changes): the network is the same, its training goes on otherwise
TUNABLE = ("steps", "batch", "precision", "guidance_weight")
TUNABLE += ("lr", "warmup", "weight_decay", "ema", "clip", "clip_guidance")


class OtherTrainingError(ValueError):
    """The checkpoint belongs to other settings or other data."""


def state_dict(state: TrainState) -> dict:
    """All that a training needs to go on."""
    return {
        "recipe": state.recipe.to_dict(),
        "data": state.data,
        "step": state.step,
        "model": state.model.state_dict(),
        "ema": state.ema_model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }


def load_state(state: TrainState, saved: dict, accept_changes: bool = False) -> None:
    """Take over what `state_dict` gave; nothing is changed where that fails.

    accept_changes: the settings in TUNABLE, and the data, may differ from the checkpoint's.
    Raises: OtherTrainingError; whatever comes of reading what is not ours.
    """
    before, step = Recipe.from_dict(saved["recipe"]).settings(), int(saved["step"])
    now, allowed = state.recipe.settings(), (*FREE, *TUNABLE) if accept_changes else FREE
    changed = {"settings": [name for name in before if before[name] != now[name] and name not in allowed]}
    data = dict(saved["data"])
    if data and state.data and not accept_changes:  # one that says nothing of its data is not asked
        was_and_is = {name: (data.get(name), state.data.get(name)) for name in sorted(data | state.data)}
        changed["data"] = [f"{name} is {b!r} and was {a!r}" for name, (a, b) in was_and_is.items() if a != b]
    for what, differing in changed.items():
        if differing:
            raise OtherTrainingError(
                f"the checkpoint was written with other {what}: {', '.join(differing)}; use the same, or another --out "
                "folder (--accept-changes allows other data or settings of the optimisation)"
            )
    modules = {"model": state.model, "ema": state.ema_model}
    for part, module in modules.items():
        if {k: v.shape for k, v in saved[part].items()} != {k: v.shape for k, v in module.state_dict().items()}:
            raise ValueError(f"the weights of its {part} do not fit its settings")
    state.optimizer.load_state_dict(saved["optimizer"])
    for group in state.optimizer.param_groups:
        group["weight_decay"] = state.training.weight_decay
    for weight, moments in state.optimizer.state.items():
        # The fused optimiser walks through memory as it lies: moments must lie as their weight does
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = torch.empty_like(weight).copy_(moments[name])
    for part, module in modules.items():
        module.load_state_dict(saved[part])
    state.step = step


def save_checkpoint(folder: str | Path, state: TrainState) -> Path:
    """Write checkpoint-STEP.pt, and remove all older ones but the last whole one.

    That serves should the new one be damaged, or its name not have reached the disk.
    Raises: NotFiniteError if the state is spoilt.
    """
    state.check_finite()
    folder = Path(folder)
    path = folder / f"checkpoint-{state.step:08d}.pt"
    for left in folder.glob(".checkpoint-*.part.pt"):  # of a process that was killed
        left.unlink()
    with atomic_write(path) as partial:
        torch.save(state_dict(state), partial)
    older = reversed([p for p in checkpoints(folder) if p.name < path.name])
    next(filter(is_whole, older), None)  # damaged ones that are newer stay too
    for old in older:
        old.unlink()
    return path


def checkpoints(folder: str | Path) -> list[Path]:
    """The files of a folder that are named like checkpoints, oldest first."""
    return sorted(p for p in Path(folder).glob("checkpoint-*.pt") if re.fullmatch(r"checkpoint-\d{8}\.pt", p.name))


def is_whole(path: Path) -> bool:
    """Whether every byte is as it was written: torch.load itself does not compare the file's checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
        return False


def resume(folder: str | Path, state: TrainState, accept_changes: bool = False) -> tuple[Path | None, list[str]]:
    """Load the newest usable checkpoint of a folder into `state`; accept_changes as for `load_state`.

    Of several processes, the first reads and the others are told: the machines need not share a disk.
    Returns: its path (None if there is none), and one sentence for each unusable one that was passed over.
    Raises: OtherTrainingError.
    """
    path, saved, passed_over = from_first(lambda: _newest(Path(folder), state, accept_changes))
    if saved is not None and rank_and_processes()[0] > 0:
        load_state(state, saved, accept_changes)
    return path, passed_over


def _newest(folder: Path, state: TrainState, accept_changes: bool) -> tuple[Path | None, dict | None, list[str]]:
    passed_over = []
    for path in reversed(checkpoints(folder)):
        try:
            if not is_whole(path):
                raise ValueError("it is damaged")
            saved = torch.load(path, map_location="cpu", weights_only=True)
            load_state(state, saved, accept_changes)
            return path, saved, passed_over
        except OtherTrainingError:
            raise
        except Exception as error:  # whatever another program's file leads to: the next older one is tried
            what = str(error).partition("\n")[0] or type(error).__name__
            passed_over.append(f"{path.name} is no whole checkpoint of this program ({what}) and was passed over")
    return None, None, passed_over


# --- one training run per folder ----------------------------------------------------------------------------


@contextlib.contextmanager
def training_lock(folder: str | Path) -> Iterator[None]:
    """Hold the run's folder: the operating system lets go of it when the process ends, however it ends.

    Raises: ValueError, one sentence, if another process trains there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        what = f"process {_holder(folder) or '?'} trains there already"
        raise ValueError(f"{folder}: {what}; stop it first, or use another --out folder") from None
    try:
        (folder / HOLDER).write_text(f"{os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / HOLDER).read_text()
    return ""


# --- other weights to begin with ----------------------------------------------------------------------------


MEANING = {"predict", "residual", "residual_scale"}  # of the output: no weight's shape tells


def begin_from(trained: Model, recipe: Recipe) -> Model:
    """A model of the recipe that begins with trained weights.

    Guidance that they lack joins as if it were not there. A diffusion begins exactly as the regression whose weights it
    gets: what that has never seen, z_t and its noise level, counts for nothing yet.
    Raises: ValueError where they do not fit, or what they predict is something else.
    """
    model = build_model(recipe.network, recipe.training.seed)
    theirs, ours = trained.config.to_dict(), recipe.network.to_dict()
    differing = [key for key in ours if ours[key] != theirs[key]]
    missing: list[str] = []
    try:
        missing, unexpected = model.load_state_dict(trained.state_dict(), strict=False)
        fits = not unexpected and all(name.startswith("guidance.") for name in missing)
    except RuntimeError:
        fits = False
    if not fits or MEANING & set(differing):
        free = {"kind", "precision"} | ({"scales"} if not theirs["scales"] else set())  # those may differ
        there = ", ".join(f"{key} is {theirs[key]}, not {ours[key]}" for key in differing if key not in free)
        advice = "give the --profile, --arm and --set that make the same network"
        raise ValueError(f"the weights to start from are another network: {there}; {advice}")
    if isinstance(model.guidance, MultiscaleGuidance) and missing:
        for weight in model.guidance.to_encoder.parameters():
            zeros_(weight)
    if trained.config.kind != recipe.network.kind == "diffusion":
        _forget_noise(model.unet)
    return model


@torch.no_grad()
def _forget_noise(unet: UNet) -> None:
    unet.conv_in.weight[:, : unet.conv_out.out_channels] = 0  # z_t comes before x
    always = silu(unet.embed(torch.zeros(1)))[0]  # the level that a regression is told
    for block in unet.modules():
        if isinstance(block, ResBlock):
            block.modulate.bias.add_(block.modulate.weight @ always)
            block.modulate.weight.zero_()

"""The configurations of a network and of its training, the model, and weights on disk."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from .guidance import MultiscaleGuidance, NoGuidance
from .machine import atomic_write, sha256
from .schedule import Image, Level
from .unet import UNet

WEIGHTS = Path(__file__).parent / "weights"
HUB_WEIGHTS, HUB_CARD = "model.safetensors", "config.json"  # names by convention of the Hugging Face hub
KINDS = ("diffusion", "regression")
PREDICTIONS = ("eps", "x0", "v")
PRECISIONS = ("auto", "fp32", "bf16")
LOSSES = ("l1", "l2")
COMPILE = ("", "default", "reduce-overhead", "max-autotune")
Denoise = Callable[[Tensor, Tensor], Tensor]  # (z_t, noise_level) -> z0_hat


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a network is. Saved with its weights; an unknown key is an error.

    The paper's own widths and depths were not available to us: those below are our choice unless a source is given.
    """

    kind: str = "diffusion"  # or "regression": the same UNet without noise, a baseline
    dims: int = 2  # 2 images, 1 signals of height 1
    channels: int = 3  # of the image
    widths: tuple[int, ...] = (32, 64, 128, 128)  # channels per resolution; DvSR: c, 2c, 3c, 4c with c = 32
    blocks: int = 1  # residual blocks per resolution
    fold: int = 1  # the paper's form; 2 or 4: pixels become channels first, for large pictures
    precision: str = "auto"  # bf16 where the processor has units for it, else fp32 (TF32 in a GPU's convolutions)

    # What it predicts: Ren 2023 predicts eps of the image itself; small budgets need x0 or v of the residual
    predict: str = "x0"
    residual: bool = True  # diffuse residual_scale * (y0 - x) instead of y0
    residual_scale: float = 2.0  # brings the residual near unit variance

    # Guidance (Ren 2023)
    scales: tuple[int, ...] = (1, 2, 3)  # k of 2^k; () is the plain icDPM; the paper: three
    target: str = "gray"  # regression target: gray (paper), rgb, none
    inject: str = "features"  # features (paper), structure
    how: str = "add"  # add (paper), concat, both
    stop_gradient: bool = False  # paper: joint, end to end
    guidance_width: int = 32
    guidance_blocks: int = 3  # residual blocks per scale

    def __post_init__(self):
        choices = {"kind": KINDS, "predict": PREDICTIONS, "precision": PRECISIONS}
        choices |= {"dims": (1, 2), "channels": (1, 3), "fold": (1, 2, 4) if self.dims == 2 else (1,)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(map(str, known))}")
        if self.kind == "regression" and self.predict != "x0":
            raise ValueError("a regression model predicts the image: set predict='x0'")
        if not self.widths or min(self.blocks, *self.widths) < 1:
            raise ValueError(f"blocks and widths must be at least 1, got {self.blocks} and {self.widths}")

    @property
    def multiple(self) -> int:
        """Sides of an image must be multiples of this."""
        return self.fold * 2 ** (len(self.widths) - 1)

    def to_dict(self) -> dict:
        """For a file's header."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """Rebuild a saved configuration; raises ValueError on a key that this version does not know."""
        return from_known(cls, values)


def from_known(cls, values: dict):
    """A configuration from a saved dictionary; lists become tuples. Raises: ValueError on an unknown key."""
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown configuration keys: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained. The paper's steps, schedule, loss norm and learning rate were not available to us."""

    # Data
    content: str = "scenes"  # "scenes", "photos", or a folder of sharp pictures
    content_count: int = 2000  # how many distinct sharp images
    domain: str = "gopro_like"  # a name in data.DOMAINS
    crop: int = 64  # pixels

    # Loss, and the forward process: continuous levels of a long linear schedule (SR3, WaveGrad)
    loss: str = "l1"  # of the denoising loss
    guidance_weight: float = 1.0  # lambda of loss = L_denoise + lambda * sum_k mse_k
    noise_steps: int = 2000
    noise_max: float = 0.01  # beta_T; alpha_bar_T = 4e-5

    # Optimisation
    steps: int = 6000  # optimiser steps
    batch: int = 16  # crops per step, in all: over every process and micro-batch
    accumulate: int = 1  # micro-batches per step on each process: less memory, the same gradients
    lr: float = 6e-4  # peak; cosine decay to 0
    warmup: int = 200  # steps of linear rise
    weight_decay: float = 0.0
    ema: float = 0.999  # decay per step, the evaluated weights
    clip: float = 1.0  # gradient norm of the denoiser
    clip_guidance: float = 1.0  # and of the guidance net, clipped on its own
    compile: str = ""  # mode of torch.compile: "" is off; "reduce-overhead" records CUDA graphs
    seed: int = 0

    def __post_init__(self):
        for name, known in (("loss", LOSSES), ("compile", COMPILE)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(map(repr, known))}")
        for name in ("steps", "batch", "accumulate", "crop", "content_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.compile == "reduce-overhead" and self.accumulate > 1:
            what = "a recorded pass writes its gradients where the last one did"
            raise ValueError(f"{what}: accumulate must be 1 with compile='reduce-overhead'")
        if self.batch % self.accumulate:
            what = f"{self.batch} crops do not part into {self.accumulate} micro-batches"
            raise ValueError(f"accumulate must divide batch: {what}")


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how."""

    network: ModelConfig = ModelConfig()
    training: TrainConfig = TrainConfig()

    def __post_init__(self):
        if self.training.crop % self.network.multiple:
            raise ValueError(f"crop must be a multiple of {self.network.multiple}, got {self.training.crop}")

    def change(self, **changes) -> "Recipe":
        """The same with other settings, each in the part that has it. Raises: ValueError for one that none has."""
        parts = {}
        for name in ("network", "training"):
            fields = {field.name for field in dataclasses.fields(getattr(self, name))}
            mine = {key: changes.pop(key) for key in sorted(fields & changes.keys())}
            parts[name] = dataclasses.replace(getattr(self, name), **mine)
        if changes:
            raise ValueError(f"unknown setting {next(iter(changes))!r}; known: {', '.join(self.settings())}")
        return Recipe(**parts)

    def settings(self) -> dict:
        """All settings by name, of both parts."""
        return dataclasses.asdict(self.network) | dataclasses.asdict(self.training)

    def to_dict(self) -> dict:
        """For files: {"network": ..., "training": ...}."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        """Rebuild a saved one. Raises: ValueError on a key that this version does not know."""
        return cls(ModelConfig.from_dict(values["network"]), from_known(TrainConfig, values["training"]))


class Model(nn.Module):
    """Guidance and denoiser together. Images are (b, c, h, w) in [-1, 1], sides multiples of `multiple`.

    What is diffused is called z: the sharp image y0, or the residual residual_scale * (y0 - x).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.guidance: MultiscaleGuidance | NoGuidance = NoGuidance()
        if c.scales:
            net = (c.guidance_width, c.guidance_blocks, c.dims, c.fold)
            self.guidance = MultiscaleGuidance(c.widths, c.scales, c.target, c.inject, c.how, c.stop_gradient, *net)
        self.unet = UNet(c.channels, c.widths, c.blocks, self.guidance.concat_channels, c.dims, c.fold)

    @property
    def multiple(self) -> int:
        return self.config.multiple

    def forward(self, z_t: Image, x: Image, noise_level: Level) -> tuple[Image, tuple[Tensor, ...]]:
        """(network output, guidance predictions): one training pass."""
        features, predictions = self.guidance(x)
        return self.unet(z_t, x, noise_level, features), predictions

    def encode(self, y0: Image, x: Image) -> Image:
        """Sharp image -> z0."""
        return self.config.residual_scale * (y0 - x) if self.config.residual else y0

    def decode(self, z0: Image, x: Image) -> Image:
        """z0 -> sharp image, clipped to [-1, 1]."""
        return (x + z0 / self.config.residual_scale if self.config.residual else z0).clamp(-1, 1)

    def target(self, z0: Image, eps: Image, noise_level: Level) -> Image:
        """What the network is asked for: eps (Ho 2020), z0, or v = level eps - sqrt(1-level^2) z0 (Salimans 2022)."""
        if self.config.predict == "eps":
            return eps
        if self.config.predict == "x0":
            return z0
        level = noise_level[:, None, None, None]
        return level * eps - torch.sqrt(1 - level**2) * z0

    def predict_z0(self, output: Image, z_t: Image, noise_level: Level) -> Image:
        """z0_hat from the network's output, whatever was asked for: the inverse of `target`."""
        if self.config.predict == "x0":
            return output
        level = noise_level[:, None, None, None]
        noise = torch.sqrt(1 - level**2)
        if self.config.predict == "eps":
            return (z_t - noise * output) / level
        return level * z_t - noise * output

    def denoiser(self, x: Image) -> Denoise:
        """denoise(z_t, noise_level) -> z0_hat for the samplers, with the guidance of x computed once.

        The image that z0_hat stands for is clipped to [-1, 1], as the data are (Ho 2020, Sec. 3.2). A regression model
        sees neither noise nor its level.
        """
        features, _ = self.guidance(x)

        def denoise(z_t: Tensor, noise_level: Tensor) -> Tensor:
            if self.config.kind == "regression":
                z_t, noise_level = torch.zeros_like(z_t), torch.zeros_like(noise_level)
            output = self.unet(z_t, x, noise_level, features)
            z0_hat = self.predict_z0(output.float(), z_t, noise_level)
            # Between the z0 of a black picture and of a white one: what needs no clipping keeps all its digits
            white = torch.ones_like(x)
            return z0_hat.clamp(self.encode(-white, x), self.encode(white, x))

        return denoise


def build_model(config: ModelConfig, seed: int = 0) -> Model:
    """The model of a configuration, its random weights drawn from the seed, on the CPU.

    >>> model = build_model(ModelConfig(widths=(16, 32), scales=(1,)))
    >>> model.multiple  # sides of its pictures are multiples of this; `restore` sees to it
    2
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(config)


def count_parameters(model: nn.Module) -> int:
    """How many numbers there are to learn."""
    return sum(p.numel() for p in model.parameters())


def plain_twin(config: ModelConfig, kind: str = "diffusion") -> ModelConfig:
    """The same network without guidance and with as many parameters, for a fair comparison; a regression predicts x0.

    The coarsest level is widened, 8 channels at a time, until the twin has at least as many parameters as the
    guided model: what is left of the difference (under 5 % at the sizes of the profiles) favours the plain one.
    """
    with torch.device("meta"):
        wanted = count_parameters(Model(config))
        predict = "x0" if kind == "regression" else config.predict
        twin = dataclasses.replace(config, scales=(), kind=kind, predict=predict)
        while count_parameters(Model(twin)) < wanted:
            twin = dataclasses.replace(twin, widths=(*twin.widths[:-1], twin.widths[-1] + 8))
    return twin


# --- weights on disk ----------------------------------------------------------------------------------------


def save_model(model: Model, path: str | Path) -> None:
    """Write weights as float16 safetensors, with the network's configuration in the header; atomic."""
    from safetensors.torch import save

    state = {name: value.detach().cpu().to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    with atomic_write(path) as partial:
        partial.write_bytes(save(state, metadata={"config": json.dumps(model.config.to_dict())}))


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Read what `save_model` wrote, in float32 and evaluation mode.

    Raises: FileNotFoundError; ValueError for a file that is not ours or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get("config")
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if config is None:
        raise ValueError(f"{path} has no tinymsg configuration in its header: it was not written by save_model")
    try:
        model = Model(ModelConfig.from_dict(json.loads(config)))
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path} does not fit the configuration in its header: {str(error).splitlines()[0]}"
        ) from error
    return model.eval().to(device)


def pretrained_names() -> list[str]:
    """Names of the shipped weights."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def pretrained(name: str | Path, device: str | torch.device = "cpu") -> Model:
    """Trained weights, in float32 and evaluation mode.

    Args:
        name: of shipped ones (`pretrained_names`); or a .safetensors file; or a folder of `tinymsg publish --hub`; or
            hf://owner/name of the Hugging Face hub, with @revision if wanted: fetched once, by the extra `hub`.
    Raises: ValueError for what is not there, cannot be fetched, or is not the file that its card speaks of.

    >>> pretrained("scenes-guided").config.scales
    (1, 2, 3)
    """
    return load_model(weights_path(name), device)


def weights_path(name: str | Path) -> Path:
    """The file of weights that `pretrained` takes."""
    return _weights_and_card(name)[0]


def model_card(name: str | Path) -> dict:
    """The card of such weights: command, data, steps, scores, SHA-256; {} of a lone file."""
    card = _weights_and_card(name)[1]
    return json.loads(card.read_text()) if card else {}


def _weights_and_card(name: str | Path) -> tuple[Path, Path | None]:
    text, path = str(name), Path(name)
    if text in pretrained_names():
        return WEIGHTS / f"{text}.safetensors", WEIGHTS / f"{text}.json"
    if text.startswith("hf://"):
        return _from_hub(text)
    if path.is_dir():
        return _matching(path / HUB_WEIGHTS, path / HUB_CARD)
    if path.is_file():
        return path, None
    known = f"shipped ({', '.join(pretrained_names())}), a .safetensors file, or hf://owner/name"
    raise ValueError(f"unknown weights {text!r}; known: {known}")


@cache  # once per process: weights and card are of one moment
def _from_hub(address: str) -> tuple[Path, Path]:
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise ValueError(f"{address} needs huggingface_hub: pip install 'tinymsg[hub]'") from None
    repository, _, revision = address.removeprefix("hf://").partition("@")
    fetch = partial(hf_hub_download, repository, revision=revision or None)
    try:
        card, weights = Path(fetch(HUB_CARD)), Path(fetch(HUB_WEIGHTS))  # what has no card is not ours
    except errors.LocalEntryNotFoundError as error:
        advice = "try again when you are online, or give a file"
        raise ValueError(f"{address} was not fetched before, and the hub does not answer: {advice}") from error
    except Exception as error:
        advice = f"are owner, name and revision right, and does it hold {HUB_CARD} and {HUB_WEIGHTS}?"
        raise ValueError(f"{address} cannot be fetched ({type(error).__name__}): {advice}") from error
    return _matching(weights, card)


def _matching(weights: Path, card: Path) -> tuple[Path, Path]:
    """Both. Raises: ValueError unless the SHA-256 in the card is that of the weights."""
    try:
        same = json.loads(card.read_text())["sha256"] == sha256(weights)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{weights.parent} holds no weights of tinymsg publish --hub with their card"
        raise ValueError(f"{what} ({type(error).__name__})") from error
    if not same:  # in the hub's cache, the name is but a link
        raise ValueError(f"{weights.resolve()} is not the file that its card speaks of: delete it and get it again")
    return weights, card

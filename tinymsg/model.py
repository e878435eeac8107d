"""One typed configuration, the model that it describes, and weights on disk."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .guidance import MultiscaleGuidance, NoGuidance, downsample
from .results import read_results
from .schedule import SCHEDULES, Schedule, make_schedule
from .unet import UNet

WEIGHTS = Path(__file__).parent / "weights"
KINDS = ("diffusion", "regression")
PREDICTIONS = ("eps", "x0", "v")
LOSSES = ("l1", "l2")
PRECISIONS = ("auto", "fp32", "bf16")
WITHHELD = ("zeros", "coarse")


@dataclass(frozen=True)
class Config:
    """Everything that decides what a model is and how it was trained. An unknown key is an error.

    The paper's own values of width, steps, schedule, loss norm and learning rate were not available to us: those
    below are our choice unless a source is given.
    """

    # What the network is
    kind: str = "diffusion"  # or "regression": the same UNet without noise, a baseline
    dims: int = 2  # 2 images, 1 signals of height 1
    channels: int = 3  # of the image
    widths: tuple[int, ...] = (32, 64, 128, 128)  # channels a resolution; DvSR: c, 2c, 3c, 4c with c = 32
    blocks: int = 1  # residual blocks a resolution
    dropout: float = 0.0

    # What it predicts: Ren 2023 predicts eps of the image itself; small budgets need x0 or v of the residual
    predict: str = "x0"
    residual: bool = True  # diffuse residual_scale * (y0 - x) instead of y0
    residual_scale: float = 2.0  # brings the residual near unit variance

    # Guidance (Ren 2023)
    scales: tuple[int, ...] = (1, 2, 3)  # k of 2^k; () is the plain icDPM; the paper: three
    target: str = "gray"  # regression target: gray (paper), rgb, none
    inject: str = "features"  # features (paper), structure, or blurry (a control)
    how: str = "add"  # add (paper), concat, both
    stop_gradient: bool = False  # paper: joint, end to end
    guidance_width: int = 32
    guidance_blocks: int = 3  # residual blocks a scale
    guidance_weight: float = 1.0  # lambda of loss = L_denoise + lambda * sum_k mse_k
    head_start: int = 0  # first optimiser steps, in which the guidance learns alone; paper: none
    withhold: float = 0.0  # share of training pairs whose blurry image only the guidance sees; 1: always, also at test
    withhold_as: str = "zeros"  # what the denoiser sees of it then: zeros, or the image coarse, 8 times smaller

    # Forward process in training (SR3 / WaveGrad form: continuous levels of a long linear schedule)
    noise_schedule: str = "linear"
    noise_steps: int = 2000
    noise_max: float = 0.01  # beta_T; alpha_bar_T = 4e-5

    # Data
    content: str = "scenes"  # a name in data.CONTENTS, or a folder of sharp pictures
    content_count: int = 2000  # how many distinct sharp images
    domain: str = "gopro_like"  # a name in data.DOMAINS
    crop: int = 64  # pixels

    # Optimisation
    loss: str = "l1"  # of the denoising loss
    steps: int = 6000  # optimiser steps
    batch: int = 16  # crops a step, in all: over every process and micro-batch
    accumulate: int = 1  # micro-batches a step on each process: less memory, the same gradients
    lr: float = 6e-4  # peak; cosine decay to 0
    warmup: int = 200  # steps of linear rise
    weight_decay: float = 0.0
    ema: float = 0.999  # decay a step, the evaluated weights
    clip: float = 1.0  # gradient norm of the denoiser
    clip_guidance: float = 1.0  # and of the guidance net, clipped on its own
    precision: str = "auto"  # bf16 where the processor computes it faster, else fp32 (TF32 in a GPU's convolutions)
    compile: bool = False  # torch.compile of the training forward pass
    cuda_graph: bool = (
        False  # record the passes of a step once, and replay them: for small batches on a GPU; not with compile
    )
    seed: int = 0

    def __post_init__(self):
        choices = {
            "kind": KINDS,
            "predict": PREDICTIONS,
            "loss": LOSSES,
            "precision": PRECISIONS,
            "dims": (1, 2),
            "noise_schedule": tuple(SCHEDULES),
            "withhold_as": WITHHELD,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(map(str, known))}")
        if self.kind == "regression" and self.predict != "x0":
            raise ValueError("a regression model predicts the image: set predict='x0'")
        for name in ("steps", "batch", "accumulate", "crop", "blocks", "channels", "content_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.withhold <= 1:
            raise ValueError(f"withhold is a share of the training pairs, 0 to 1, got {self.withhold}")
        if self.head_start and (not self.scales or self.target == "none"):
            raise ValueError("head_start lets the guidance learn first: it needs scales and a target to learn")
        if self.cuda_graph and self.compile:
            raise ValueError(
                "cuda_graph records the kernels of the uncompiled model: set compile or cuda_graph, not both"
            )
        if self.batch % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch: {self.batch} crops do not part into {self.accumulate} micro-batches"
            )
        if self.crop % 2 ** (len(self.widths) - 1):
            raise ValueError(f"crop must be a multiple of {2 ** (len(self.widths) - 1)}, got {self.crop}")

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Rebuild a saved configuration; raises ValueError on a key that this version does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown configuration keys: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


# A profile changes numbers, never a code path
PROFILES: dict[str, dict] = {
    "cpu": {},
    "gpu": {
        "widths": (64, 128, 192, 256),
        "blocks": 2,
        "crop": 128,
        "batch": 64,
        "steps": 60_000,
        "lr": 4e-4,
        "compile": True,
    },
    # Full GoPro training. Behind each value its source, or "ours" for our choice. The texts of Ren 2023 and of DvSR
    # (Whang 2022) gave us no loss norm, batch, rate, EMA or number of steps: those are ours, and untested at this length
    "full": {
        "widths": (32, 64, 96, 128),  # DvSR, Fig. 10: c, 2c, 3c, 4c; c = 32 as said of its denoiser
        "blocks": 3,
        "dropout": 0.0,  # ours: 6.2 M parameters, DvSR's denoiser has about 7 M
        "predict": "eps",
        "residual": False,  # Ren 2023, Fig. 2: eps, of the sharp image itself
        "scales": (1, 2, 3),  # three by a published summary of Ren 2023; its own text was not seen
        "target": "gray",
        "inject": "features",
        "how": "add",
        "stop_gradient": False,  # Ren 2023, Figs. 3 and 12
        "guidance_width": 64,
        "guidance_blocks": 3,
        "guidance_weight": 1.0,  # ours
        "noise_schedule": "linear",
        "noise_steps": 2000,
        "noise_max": 0.01,  # levels: SR3, WaveGrad; values: ours
        "content": "gopro",  # Ren 2023; the pictures themselves come with --data gopro
        "crop": 128,  # ours
        "batch": 256,
        "steps": 1_000_000,  # ours, after SR3 (Saharia 2021): 256 M crops
        "accumulate": 1,  # for an 80 GB card; `train --estimate --profile full` says what fits others
        "loss": "l1",  # ours, after WaveGrad (Chen 2021)
        "lr": 1e-4,
        "warmup": 10_000,
        "weight_decay": 0.0,  # ours: SR3's rate and warm-up; the cosine after it is ours
        "ema": 0.9999,  # ours, after Ho 2020
        "clip": 1.0,
        "clip_guidance": 1.0,  # ours
        "precision": "auto",
        "compile": True,  # ours: speed alone
    },
}


class Model(nn.Module):
    """Guidance and denoiser together. Images are (b, c, h, w) in [-1, 1], sides multiples of `multiple`.

    What is diffused is called z: the sharp image y0, or the residual residual_scale * (y0 - x).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        if config.scales:
            self.guidance = MultiscaleGuidance(
                config.widths,
                config.scales,
                config.target,
                config.inject,
                config.how,
                config.stop_gradient,
                config.guidance_width,
                config.guidance_blocks,
                config.dims,
            )
        else:
            self.guidance = NoGuidance()
        self.unet = UNet(
            config.channels, config.widths, config.blocks, config.dropout, self.guidance.concat_channels, config.dims
        )

    @property
    def multiple(self) -> int:
        return self.unet.multiple

    def training_schedule(self) -> Schedule:
        return make_schedule(self.config.noise_schedule, self.config.noise_steps, self.config.noise_max)

    def forward(
        self, z_t: Tensor, x: Tensor, noise_level: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(network output, guidance predictions): one training pass; hidden as in `conceal`."""
        features, predictions = self.guidance(x)
        return self.unet(z_t, self.conceal(x, hidden), noise_level, features), predictions

    def conceal(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """What the denoiser sees of the blurry x (b, c, h, w): hidden (b,) bool marks images that are withheld."""
        if hidden is None:
            return x
        blank = torch.zeros_like(x)
        if self.config.withhold_as == "coarse":
            blank = F.interpolate(downsample(x, 3), size=x.shape[-2:], mode="bilinear").to(x.dtype)
        return torch.where(hidden[:, None, None, None], blank, x)

    def encode(self, y0: Tensor, x: Tensor) -> Tensor:
        """Sharp image -> z0."""
        return self.config.residual_scale * (y0 - x) if self.config.residual else y0

    def decode(self, z0: Tensor, x: Tensor) -> Tensor:
        """z0 -> sharp image, clipped to [-1, 1]."""
        return (x + z0 / self.config.residual_scale if self.config.residual else z0).clamp(-1, 1)

    def target(self, z0: Tensor, eps: Tensor, noise_level: Tensor) -> Tensor:
        """What the network is asked for: eps (Ho 2020), z0, or v = level eps - sqrt(1-level^2) z0 (Salimans 2022)."""
        if self.config.predict == "eps":
            return eps
        if self.config.predict == "x0":
            return z0
        level = noise_level[:, None, None, None]
        return level * eps - torch.sqrt(1 - level**2) * z0

    def predict_z0(self, output: Tensor, z_t: Tensor, noise_level: Tensor) -> Tensor:
        """z0_hat from the network's output, whatever was asked for: the inverse of `target`."""
        if self.config.predict == "x0":
            return output
        level = noise_level[:, None, None, None]
        noise = torch.sqrt(1 - level**2)
        if self.config.predict == "eps":
            return (z_t - noise * output) / level
        return level * z_t - noise * output

    def denoiser(self, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """eps_fn(z_t, noise_level) -> eps_hat for the samplers, with the guidance of x computed once.

        The image that eps_hat implies is clipped to [-1, 1] (Ho 2020, Sec. 3.2's reverse process on data in
        that range); the returned eps_hat agrees with the clipped image.
        """
        features, _ = self.guidance(x)
        always = torch.ones(len(x), dtype=torch.bool, device=x.device) if self.config.withhold == 1 else None
        seen = self.conceal(x, always)

        def eps_fn(z_t: Tensor, noise_level: Tensor) -> Tensor:
            if self.config.kind == "regression":  # sees neither noise nor its level
                output = self.unet(torch.zeros_like(z_t), seen, torch.zeros_like(noise_level), features)
            else:
                output = self.unet(z_t, seen, noise_level, features)
            z0_hat = self.predict_z0(output.float(), z_t, noise_level)
            z0_hat = self.encode(self.decode(z0_hat, x), x)
            level = noise_level[:, None, None, None]
            return (z_t - level * z0_hat) / torch.sqrt(1 - level**2)

        return eps_fn


def build_model(config: Config) -> Model:
    """The model of a configuration, initialised from its seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Model(config)


def count_parameters(model: nn.Module) -> int:
    """How many numbers there are to learn."""
    return sum(p.numel() for p in model.parameters())


def plain_twin(config: Config, kind: str = "diffusion") -> Config:
    """The same network without guidance and with as many parameters, for a fair comparison.

    The coarsest level is widened, 8 channels at a time, until the twin has at least as many parameters as the
    guided model: what is left of the difference (under 5 % at the sizes of the profiles) favours the plain one.
    """
    with torch.device("meta"):
        wanted = count_parameters(Model(config))
        twin = dataclasses.replace(config, scales=(), kind=kind)
        while count_parameters(Model(twin)) < wanted:
            twin = dataclasses.replace(twin, widths=(*twin.widths[:-1], twin.widths[-1] + 8))
    return twin


def save_model(model: Model, path: str | Path) -> None:
    """Write weights as float16 safetensors, with the configuration in the header; atomic."""
    from safetensors.torch import save

    path = Path(path)
    state = {name: value.detach().cpu().to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(save(state, metadata={"config": json.dumps(model.config.to_dict())}))
    partial.replace(path)


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
            state = {name: file.get_tensor(name).float() for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if config is None:
        raise ValueError(f"{path} has no tinymsg configuration in its header: it was not written by save_model")
    try:
        model = Model(Config.from_dict(json.loads(config)))
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path} does not fit the configuration in its header: {str(error).splitlines()[0]}"
        ) from error
    return model.eval().to(device)


def pretrained_names() -> list[str]:
    """Names of the shipped weights."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def pretrained(name: str, device: str | torch.device = "cpu") -> Model:
    """A shipped model by name; see `pretrained_names`."""
    if name not in pretrained_names():
        raise ValueError(f"unknown weights {name!r}; shipped: {', '.join(pretrained_names())}")
    return load_model(WEIGHTS / f"{name}.safetensors", device)


def model_card(name: str) -> dict:
    """The card of shipped weights: command, data, steps, scores, SHA-256."""
    if name not in pretrained_names():
        raise ValueError(f"unknown weights {name!r}; shipped: {', '.join(pretrained_names())}")
    return read_results(WEIGHTS / f"{name}.json")

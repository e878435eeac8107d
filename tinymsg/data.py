"""Pairs of sharp and blurry pictures: made on the device from (domain, seed, index), or read from folders.

Every source of pairs has one method, `crops(index, size) -> (y0, x)`, both (n, c, size, size) in [-1, 1]: the
same index gives the same crop, always. Training reads batch number s as indices s * batch ...: there is no
iterator whose state could be lost.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .blur import Amount, Camera, Motion, Range, draw_amount, photograph, resampling
from .machine import atomic_write, out_of_memory, upload
from .rng import Draws
from .scenes import render_scenes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
JPEG_ROOM = 8  # pixels about a scaled picture: JPEG's blocks of 16 then begin at any of its pixels
MAX_PIXELS = 64_000_000  # 8000 x 8000: above it an image is refused rather than the machine's memory filled


class Pair(NamedTuple):
    """One blurry picture and what it should have been."""

    name: str  # unique within its split, e.g. GOPR0384_11_00/000001
    sharp: Path | tuple[Path, ...]  # Koehler: every sharp frame of the exposure, in time
    blurry: Path

    @property
    def sharp_paths(self) -> tuple[Path, ...]:
        """The sharp picture or pictures, always as a tuple."""
        return self.sharp if isinstance(self.sharp, tuple) else (self.sharp,)


class ImageError(ValueError):
    """A picture that cannot be used, with the reason in one sentence."""


def picture_files(
    folder: str | Path, recursive: bool = False, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """The pictures in a folder, or everywhere below it, sorted by path, told by their suffixes.

    Hidden files are none: a Mac leaves ._NAME.png beside NAME.png.
    """
    found = Path(folder).rglob("*") if recursive else Path(folder).iterdir()
    return sorted(p for p in found if p.suffix.lower() in suffixes and not p.name.startswith(".") and not p.is_dir())


@contextmanager
def open_picture(path: str | Path, limit: int) -> Iterator[Any]:
    """The opened PIL image; what fails in the block because of the file is told as one ImageError.

    Raises: ImageError, with one sentence, for what is missing, damaged, not a picture, or has more than `limit` pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > limit:
                size = f"{image.width}x{image.height} pixels"
                raise ImageError(f"{path}: {size}; the limit is {limit // 10**6} million")
            yield image
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture that can be read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: too large; the limit is {limit // 10**6} million pixels") from None
    except Exception as error:  # each decoder has its own
        if isinstance(error, ImageError) or out_of_memory(error):
            raise
        raise ImageError(f"{path}: damaged or unreadable ({getattr(error, 'strerror', None) or error})") from None


def gray_levels(image) -> np.ndarray:
    """Display values of a PIL image of mode I, I;16 or F (0 to 1, 255 or 65535), float32 (h, w) in [0, 1].

    PIL's own conversion would clip them at 255.
    """
    gray = np.asarray(image, dtype=np.float32)
    wide = gray.max() > 255 or image.mode.startswith("I;16")
    fractions = image.mode == "F" and gray.max() <= 16  # floating point, already display values, highlights above 1
    return (gray / (65535 if wide else 1 if fractions else 255)).clip(0, 1)


def read_image(path: str | Path) -> Tensor:
    """Read a picture as display values.

    8- and 16-bit, floating-point gray, RGB, palette, CMYK and RGBA files give RGB (transparency over white); the
    EXIF orientation is applied.
    Returns: float32 (3, h, w) in [0, 1].
    Raises: ImageError, with one sentence, for what is missing, truncated, not a picture, or over MAX_PIXELS.
    """
    from PIL import Image, ImageOps

    with open_picture(path, MAX_PIXELS) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return torch.from_numpy(gray_levels(image)).expand(3, -1, -1).clone()
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def write_image(path: str | Path, display: Tensor) -> None:
    """Write display values (3, h, w) in [0, 1] as an 8-bit picture; the suffix decides the format.

    The file appears whole or not at all: it is written beside its place and renamed.
    Raises: ImageError, with one sentence, if it cannot be written.
    """
    from PIL import Image

    path = Path(path)
    pixels = (display.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    options: dict[str, Any] = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    try:
        with atomic_write(path) as partial:
            Image.fromarray(pixels).save(partial, **options)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: could not be written ({getattr(error, 'strerror', None) or error})") from None


def to_model(display: Tensor) -> Tensor:
    """[0, 1] display values -> the model's [-1, 1]."""
    return display * 2 - 1


def to_display(model_range: Tensor) -> Tensor:
    """The model's [-1, 1] -> [0, 1] display values, clipped.

    >>> to_display(torch.tensor([-1.0, 0.0, 1.5]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return ((model_range + 1) / 2).clamp(0, 1)


def pad_to_multiple(x: Float[Tensor, "b c h w"], multiple: int, dims: int = 2) -> Float[Tensor, "b c h2 w2"]:
    """Mirror the right and lower border out to a multiple; tiny images repeat their last pixel instead."""
    h, w = x.shape[-2:]
    right, below = -w % multiple, (-h % multiple if dims == 2 else 0)
    if right == below == 0:
        return x
    return F.pad(x, (0, right, 0, below), mode="reflect" if right < w and below < h else "replicate")


def check_images(x: Tensor, channels: int) -> None:
    """Raise ValueError unless x is float (b, channels, h, w), finite, in [-1, 1]."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (b, {channels}, h, w), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x is empty: {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point in [-1, 1], got {x.dtype}; divide by 127.5 and subtract 1")
    if not torch.isfinite(x).all():
        raise ValueError("x holds values that are not finite")
    if x.abs().max() > 1.001:
        raise ValueError(
            f"x must lie in [-1, 1], got {float(x.min()):.3g} .. {float(x.max()):.3g}; display values need 2 * x - 1"
        )


# --- sharp pictures -----------------------------------------------------------------------------------------


class Contents:
    """A finite set of sharp pictures, held as uint8, from which crops are cut where an index says.

    Args:
        images: list of uint8 (c, h, w), any sizes.
        name: for results files.
    """

    def __init__(self, images: list[Tensor], name: str):
        if not images:
            raise ValueError(f"no sharp pictures in {name}")
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def crops(self, draws: Draws, size: int) -> Tensor:
        """(n, c, size, size) display values of what `cut` cuts."""
        return torch.stack(self.cut(draws, [size] * len(draws))).float() / 255

    def cut(self, draws: Draws, sizes: list[int]) -> list[Tensor]:
        """uint8 crops (c, size, size), each of its own size: picture, place, flips and quarter turns drawn on the CPU.

        Pictures smaller than `size` are mirrored outwards.
        """
        which = draws.integers(len(self.images))
        place = draws.uniform(2)
        turn = draws.integers(8)
        cut = []
        for i, (index, size) in enumerate(zip(which.tolist(), sizes, strict=True)):
            image = self.images[index]
            h, w = image.shape[-2:]
            top, left = (int(place[i, 0] * max(h - size + 1, 1)), int(place[i, 1] * max(w - size + 1, 1)))
            crop = image[:, top : top + size, left : left + size]
            if crop.shape[-2:] != (size, size):
                missing = ((0, 0), (0, size - crop.shape[1]), (0, size - crop.shape[2]))
                crop = torch.from_numpy(np.pad(crop.numpy(), missing, mode="symmetric"))
            crop = torch.rot90(crop, int(turn[i]) % 4, dims=(1, 2))
            cut.append(crop.flip(2) if turn[i] >= 4 else crop)
        return cut


@cache
def scene_contents(count: int, seed: int = 0, size: int = 128) -> Contents:
    """`count` procedural scenes of size x size pixels, rendered once per process (about 20 per second and core)."""
    parts = [render_scenes(index, size, seed) for index in torch.arange(count).split(64)]
    return Contents(
        list((torch.cat(parts) * 255).round().to(torch.uint8)), f"scenes(count={count}, seed={seed}, size={size})"
    )


PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")  # inside scikit-image's package


def photo(name: str) -> Tensor:
    """One of scikit-image's photographs (`PHOTOS`), uint8 (3, h, w). Nothing is downloaded."""
    from skimage import data as skimage_data

    if name not in PHOTOS:
        raise ValueError(f"unknown photo {name!r}; known: {', '.join(PHOTOS)}")
    image = getattr(skimage_data, name)()
    image = image[0] if isinstance(image, tuple) else image  # the motorcycle is a stereo pair: its left view
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()


SAMPLES = Path(__file__).with_name("samples")  # centres of eight real pairs of GoPro; origin and licence beside them


def real_pair(name: str) -> tuple[Tensor, Tensor]:
    """(y0, x), both (1, 3, 448, 448) in [-1, 1]: one of the real pairs that come with the package, e.g. "flower"."""
    known = [path.stem for path in picture_files(SAMPLES / "sharp")]
    if name not in known:
        raise ValueError(f"unknown real pair {name!r}; known: {', '.join(known)}")
    y0, x = (to_model(read_image(SAMPLES / kind / f"{name}.png"))[None] for kind in ("sharp", "blur"))
    return y0, x


@cache
def photo_contents() -> Contents:
    """The photographs inside scikit-image's package: natural content without a download."""
    return Contents([photo(name) for name in PHOTOS], "scikit-image photos")


@cache
def folder_contents(folder: str) -> Contents:
    """All pictures below a folder, in order of their names."""
    paths = picture_files(folder, recursive=True)
    if not paths:
        raise ValueError(f"no pictures ({', '.join(IMAGE_SUFFIXES)}) below {folder}")
    images = [(read_image(path) * 255).round().to(torch.uint8) for path in paths]
    return Contents(images, f"{len(paths)} pictures of {Path(folder).name}")


def make_contents(name: str, count: int, seed: int) -> Contents:
    """Procedural "scenes", scikit-image's "photos", or the pictures of a folder."""
    if name in ("scenes", "photos"):
        return scene_contents(count, seed) if name == "scenes" else photo_contents()
    if Path(name).is_dir():
        return folder_contents(name)
    raise ValueError(f"unknown content {name!r}; known: scenes, photos, or the path of a folder of sharp pictures")


# --- domains: content x blur x camera -----------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """What changes between training and test. new_content: sharp pictures of another kind than the training's."""

    motion: Motion = Motion()
    camera: Camera = Camera()
    new_content: bool = False
    scale: Amount = 1.0  # how much smaller the picture was made after the blur, at most 1
    other: "Domain | None" = None  # of which every second pair is

    def margin(self, size: int) -> int:
        """Pixels about a picture of `size` pixels that its light may come from."""
        return int(self.motion.reach + 1 + 0.01 * self.motion.roll[1] * size + self.camera.spread)


_SHAKE = Motion("walk", length=(9.0, 23.0), roll=(0.0, 2.0))
# As GoPro's pairs are made: long motion averaged in the file's own values, hardly any noise
_FILM = Domain(
    Motion("smooth", Range(4.0, 40.0), roll=Range(0.2, 1.5, share=0.3), still=0.08),
    Camera("none", shot=Range(1e-6, 1e-4, log=True), read=Range(1e-4, 1e-3, log=True)),
)
DOMAINS: dict[str, Domain] = {
    # The training domain, after GoPro: short smooth motion, light averaged, gamma, clean
    "gopro_like": Domain(),
    # One thing changed in each
    "new_content": Domain(new_content=True),
    "camera_shake": Domain(motion=_SHAKE),
    "noise": Domain(camera=Camera(shot=0.004, read=0.01)),
    "jpeg": Domain(camera=Camera(jpeg_quality=30)),
    "saturated_night": Domain(camera=Camera(exposure=0.3, highlights=12.0, shot=0.002, read=0.005)),
    # Everything at once
    "all": Domain(
        _SHAKE, Camera("measured", exposure=0.6, highlights=4.0, shot=0.004, read=0.01, jpeg_quality=50), True
    ),
    # Not a test domain: photographs as people have them, for training; one in ten is sharp
    "everyday": Domain(
        Motion(("smooth", "linear", "walk"), Range(1.0, 30.0, log=True), roll=Range(0.2, 2.0, share=0.15), still=0.2),
        Camera(
            ("gamma", "measured"),
            highlights=Range(1.0, 8.0, log=True, share=0.4, otherwise=1.0),
            defocus=Range(0.3, 1.0, share=0.35),
            shot=Range(1e-5, 1e-2, log=True),  # daylight to dusk
            read=Range(3e-4, 6e-3, log=True),
            red_gain=(1.9, 2.4),  # of the cameras in RSBlur (Rim et al. 2022)
            blue_gain=(1.5, 1.9),
            jpeg_quality=Range(30, 95, share=0.8),
        ),
        scale=Range(0.5, 1.0, share=0.3, otherwise=1.0),
        other=_FILM,
    ),
    # Nor this
    "film": _FILM,
    # Another task: white noise on a picture that did not move, from hardly visible to heavy
    "denoising": Domain(Motion("linear", length=(0.0, 0.0)), Camera("none", read=Range(0.01, 0.3, log=True))),
    # Not test domains: a single kernel, for the lessons' live training, and its kin
    "one_kernel": Domain(motion=Motion("linear", length=(9.0, 9.0), angle=20.0, kernels=1)),
    "other_length": Domain(motion=Motion("linear", length=(5.0, 5.0), angle=20.0, kernels=1)),
    "other_angle": Domain(motion=Motion("linear", length=(9.0, 9.0), angle=110.0, kernels=1)),
}
TEST_DOMAINS = ("new_content", "camera_shake", "noise", "jpeg", "saturated_night", "all")


def get_domain(name: str) -> Domain:
    """A registered domain."""
    if name not in DOMAINS:
        raise ValueError(f"unknown domain {name!r}; known: {', '.join(DOMAINS)}")
    return DOMAINS[name]


# --- pairs --------------------------------------------------------------------------------------------------


@runtime_checkable
class Pairs(Protocol):
    """What training and evaluation ask for."""

    name: str

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]: ...


class SyntheticPairs:
    """Endless pairs from finite sharp pictures; pair i depends on (contents, domain, seed, i, size) alone.

    Args:
        contents: sharp pictures.
        domain: a Domain, or a name in DOMAINS.
        seed: of the pairs (not of the contents).
        device: where pairs are blurred and returned.
        gray: one channel instead of three.

    >>> pairs = SyntheticPairs(scene_contents(4, seed=0), "gopro_like", seed=1)
    >>> y0, x = pairs.crops(torch.arange(2), 32)
    >>> x.shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        contents: Contents,
        domain: Domain | str,
        seed: int = 0,
        device: torch.device | str = "cpu",
        gray: bool = False,
    ):
        self.contents, self.seed, self.device, self.gray = contents, seed, torch.device(device), gray
        self.domain = get_domain(domain) if isinstance(domain, str) else domain
        label = domain if isinstance(domain, str) else repr(domain)
        self.name = f"{label} on {contents.name}, seed {seed}"

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, c, size, size) in [-1, 1], for int64 indices (n,)."""
        index, other = index.cpu(), self.domain.other
        if other is None:
            return self._crops(self.domain, index, size)
        groups = [(d, rows) for n, d in enumerate((self.domain, other)) if len(rows := torch.where(index % 2 == n)[0])]
        made = [self._crops(d, index[rows], size) for d, rows in groups]
        order = upload(torch.cat([rows for _, rows in groups]).argsort(), self.device)
        y0, x = (torch.cat(images).index_select(0, order) for images in zip(*made, strict=True))
        return y0, x

    def pictures(self, index: Tensor) -> Tensor:
        """Which of the sharp pictures each of these crops is cut from: int64 (n,), on the CPU."""
        found = []
        for domain in (self.domain, self.domain.other or self.domain):
            draws = Draws(self.seed, index.cpu())
            if domain.scale != 1:  # drawn before the picture, in _crops
                draw_amount(domain.scale, draws)
            found.append(draws.integers(len(self.contents)))
        return torch.where(index.cpu() % 2 == 0, *found)

    def _crops(self, domain: Domain, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        draws = Draws(self.seed, index)  # what the pairs are is planned on the CPU, and made on the device
        scaled = domain.scale != 1
        margin = JPEG_ROOM if scaled else domain.margin(size)
        target = size + 2 * margin
        sides = [target] * len(index)
        scale = torch.ones(len(index))
        if scaled:
            scale = scale * draw_amount(domain.scale, draws)
            need = [target / s + 2 * domain.margin(int(target / s)) + 4 / s for s in scale.tolist()]  # 4: the weights'
            sides = [target + 8 * math.ceil((side - target) / 8) for side in need]  # few sizes: few groups
        pictures, rows, made = self.contents.cut(draws, sides), [], []
        for side in sorted(set(sides)):  # what has the same shape is made at once
            group = torch.tensor([row for row, other in enumerate(sides) if other == side])
            sharp = upload(torch.stack([pictures[row] for row in group]), self.device).float() / 255
            resize = resampling(scale[group], side, target) if scaled else None
            made.append(photograph(sharp, domain.motion, domain.camera, draws.rows(group), margin, resize))
            rows.append(group)
        order = upload(torch.cat(rows).argsort(), self.device)
        y0, x = (torch.cat(images).index_select(0, order) for images in zip(*made, strict=True))
        if self.gray:
            y0, x = (image[:, 1:2] for image in (y0, x))  # green: what most of luma is
        return to_model(y0), to_model(x)


@dataclass(frozen=True)
class Batches:
    """Batch number s of a training run: a pure function of s, so that a resumed run sees the same data.

    batch is the total; of several processes, number `rank` gets every `processes`-th pair of it.
    """

    pairs: Pairs
    batch: int
    size: int
    rank: int = 0
    processes: int = 1

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """(y0, x) of optimiser step `step` = 0, 1, ..., both (batch / processes, c, size, size)."""
        first = step * self.batch
        return self.pairs.crops(torch.arange(first + self.rank, first + self.batch, self.processes), self.size)

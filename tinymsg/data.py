"""Pairs of sharp and blurry pictures: made on the device from (domain, seed, index), or read from folders.

Every source of pairs has one method, `crops(index, size) -> (y0, x)`, both (n, c, size, size) in [-1, 1]: the
same index gives the same crop, always. Training reads batch number s as indices s * batch ...: there is no
iterator whose state could be lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .blur import Camera, Motion, convolve, photograph
from .rng import Draws
from .scenes import render_scenes, render_signals

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 64_000_000  # 8000 x 8000: above it an image is refused rather than the machine's memory filled


class ImageError(ValueError):
    """A picture that cannot be used, with the reason in one sentence."""


def picture_files(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The pictures in a folder, or everywhere below it, sorted by path, told by their suffixes (IMAGE_SUFFIXES).

    Hidden files are none: a Mac leaves ._NAME.png beside NAME.png.
    """
    found = Path(folder).rglob("*") if recursive else Path(folder).iterdir()
    return sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def read_image(path: str | Path) -> Tensor:
    """Read a picture as display values.

    8- and 16-bit, floating-point gray (0 to 1, 255 or 65535), RGB, palette, CMYK and RGBA files give RGB
    (transparency over white); the EXIF orientation is applied.
    Returns: float32 (3, h, w) in [0, 1].
    Raises: ImageError, with one sentence, for what is missing, truncated, not a picture, or over MAX_PIXELS.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{path}: {image.width}x{image.height} pixels; the limit is {MAX_PIXELS // 10**6} million"
                )
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # 16-bit gray: PIL's own conversion would clip it at 255
                gray = np.asarray(image, dtype=np.float32)
                fractions = image.mode == "F" and gray.max() <= 1  # floating point, already display values
                gray = gray / (
                    65535.0 if gray.max() > 255 or image.mode.startswith("I;16") else 1.0 if fractions else 255.0
                )
                return torch.from_numpy(gray.clip(0, 1)).expand(3, -1, -1).clone()
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image)
            pixels = np.array(image.convert("RGB"))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture that can be read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: too large; the limit is {MAX_PIXELS // 10**6} million pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: damaged or unreadable ({error})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def write_image(path: str | Path, display: Tensor, like: str | Path | None = None) -> None:
    """Write display values (3, h, w) in [0, 1] as an 8-bit picture; the suffix decides the format.

    The file appears whole or not at all: it is written beside its place and renamed.

    Args:
        like: a picture whose EXIF data is carried over, with the orientation already applied by `read_image`.
    Raises: ImageError, with one sentence, if it cannot be written.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    pixels = (display.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    options = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    if like is not None:
        with Image.open(like) as source:
            if exif := ImageOps.exif_transpose(source).getexif().tobytes():
                options["exif"] = exif
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(partial, **options)
        partial.replace(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: could not be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        if partial.is_file():
            partial.unlink()


def to_model(display: Tensor) -> Tensor:
    """[0, 1] display values -> the model's [-1, 1]."""
    return display * 2 - 1


def to_display(model_range: Tensor) -> Tensor:
    """The model's [-1, 1] -> [0, 1] display values, clipped."""
    return ((model_range + 1) / 2).clamp(0, 1)


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
        first = images[0].shape
        self._stack = torch.stack(images) if all(image.shape == first for image in images) else None

    def __len__(self) -> int:
        return len(self.images)

    def crops(self, draws: Draws, size: int, device: torch.device | str = "cpu") -> Tensor:
        """(n, c, size, size) display values: picture, place, flips and quarter turns drawn from `draws`.

        Pictures smaller than `size` are mirrored outwards.
        """
        which = draws.integers(len(self.images)).cpu()
        place = draws.uniform(2).cpu()
        turn = draws.integers(8).cpu()
        cut = []
        for i, index in enumerate(which.tolist()):
            image = self.images[index] if self._stack is None else self._stack[index]
            h, w = image.shape[-2:]
            top, left = (int(place[i, 0] * max(h - size + 1, 1)), int(place[i, 1] * max(w - size + 1, 1)))
            crop = image[:, top : top + size, left : left + size]
            if crop.shape[-2:] != (size, size):
                crop = torch.from_numpy(
                    np.pad(
                        crop.numpy(), ((0, 0), (0, size - crop.shape[1]), (0, size - crop.shape[2])), mode="symmetric"
                    )
                )
            crop = torch.rot90(crop, int(turn[i]) % 4, dims=(1, 2))
            cut.append(crop.flip(2) if turn[i] >= 4 else crop)
        return torch.stack(cut).to(device).float() / 255


@cache
def scene_contents(count: int, seed: int = 0, size: int = 128) -> Contents:
    """`count` procedural scenes of size x size pixels, rendered once a process (about 20 scenes a second a core)."""
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


CONTENTS: dict[str, Callable[[int, int], Contents]] = {
    "scenes": lambda count, seed: scene_contents(count, seed),
    "photos": lambda count, seed: photo_contents(),
}


def make_contents(name: str, count: int, seed: int) -> Contents:
    """A registered content, or the pictures of a folder."""
    if name in CONTENTS:
        return CONTENTS[name](count, seed)
    if Path(name).is_dir():
        return folder_contents(name)
    raise ValueError(
        f"unknown content {name!r}; known: {', '.join(CONTENTS)}, or the path of a folder of sharp pictures"
    )


def other_content(name: str) -> str:
    """Content unlike the training's: photographs for what learnt procedural scenes, scenes for what learnt photographs."""
    return "photos" if name == "scenes" else "scenes"


# --- domains: content x blur x camera -----------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """What changes between training and test. new_content: sharp pictures of another kind than the training's."""

    motion: Motion = Motion()
    camera: Camera = Camera()
    new_content: bool = False


_SHAKE = Motion("walk", length=(9.0, 23.0), roll=(0.0, 2.0))
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
        draws = Draws(self.seed, index.to(self.device))
        motion = self.domain.motion
        margin = int(motion.length[1] / 2 + 2 + (0.02 * size if motion.rotates else 0))
        sharp = self.contents.crops(draws, size + 2 * margin, self.device)
        y0, x = photograph(sharp, motion, self.domain.camera, draws, margin)
        if self.gray:
            y0, x = (image[:, 1:2] for image in (y0, x))  # green: what most of luma is
        return to_model(y0), to_model(x)


class SignalPairs:
    """One-dimensional pairs for the toy: signals of height 1, each blurred by one of some fixed kernels.

    Args:
        kernels: (m, k), k odd, each summing to 1.
        count: how many distinct signals.
        seed: of signals and pairs.
        noise: standard deviation of white noise on the blurry signal.
        content: "signals" (procedural), or "photos": rows of scikit-image's photographs.
    """

    def __init__(
        self,
        kernels: Tensor,
        count: int = 1000,
        seed: int = 0,
        noise: float = 0.0,
        content: str = "signals",
        device: torch.device | str = "cpu",
    ):
        if content not in ("signals", "photos"):
            raise ValueError(f"unknown content {content!r} of signals; known: signals, photos")
        self.kernels, self.count, self.seed, self.noise, self.content = kernels, count, seed, noise, content
        self.device = torch.device(device)
        self.name = f"{count} {content}, {len(kernels)} kernel(s), seed {seed}"

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 1, 1, size) in [-1, 1]."""
        draws = Draws(self.seed, index.to(self.device))
        margin = self.kernels.shape[-1] // 2
        if self.content == "photos":
            length = size + 2 * margin
            signal = photo_contents().crops(draws, length, self.device)[:, 1:2, length // 2 : length // 2 + 1]  # green
        else:
            signal = render_signals(draws.integers(self.count), size + 2 * margin, self.seed)
        kernel = self.kernels.to(self.device)[draws.integers(len(self.kernels))]
        x = convolve(signal, kernel[:, None, :], padding="valid")
        x = (x + self.noise * draws.normal(*x.shape[1:])).clamp(0, 1)
        y0 = signal[..., margin : signal.shape[-1] - margin]
        return to_model(y0), to_model(x)


def box_kernels(*widths: int) -> Tensor:
    """(m, k) box kernels of the given odd widths, zero-padded to the widest."""
    size = max(widths)
    if any(w % 2 == 0 or w < 1 for w in widths):
        raise ValueError(f"box widths must be odd and positive, got {widths}")
    kernels = torch.zeros(len(widths), size)
    for row, width in zip(kernels, widths, strict=True):
        row[(size - width) // 2 : (size + width) // 2] = 1 / width
    return kernels


class PairedImages:
    """Real pairs from a folder. Layouts, tried in this order; files are matched by name:

        GoPro:  SEQUENCE/blur/NAME + SEQUENCE/sharp/NAME   (`blur` chooses blur or blur_gamma)
        flat:   blur/NAME + sharp/NAME, or input/NAME + target/NAME

    Args:
        folder: e.g. data/GOPRO_Large/train.
        blur: name of the folders with blurry pictures, in the GoPro layout.
        seed: of the crops.
    Raises: ValueError if no pairs are found, or a blurry picture has no sharp one.
    """

    def __init__(self, folder: str | Path, blur: str = "blur", seed: int = 0, device: torch.device | str = "cpu"):
        self.folder, self.seed, self.device = Path(folder), seed, torch.device(device)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is not a folder; see data_scripts/ for how to get the data")
        self.paths: list[tuple[Path, Path]] = []
        for blur_name, sharp_name in ((blur, "sharp"), ("input", "target")):
            for blur_folder in sorted(p for p in self.folder.rglob(blur_name) if p.is_dir()):
                self.paths += self._match(blur_folder, blur_folder.with_name(sharp_name))
        if not self.paths:
            raise ValueError(
                f"no pairs below {folder}: expected SEQUENCE/{blur}/ beside SEQUENCE/sharp/, or input/ beside target/"
            )
        self.name = f"{len(self.paths)} pairs of {self.folder.name} ({blur})"

    @staticmethod
    def _match(blur_folder: Path, sharp_folder: Path) -> list[tuple[Path, Path]]:
        blurry = picture_files(blur_folder)
        missing = [p.name for p in blurry if not (sharp_folder / p.name).is_file()]
        if missing:
            raise ValueError(f"{sharp_folder} lacks {len(missing)} of {len(blurry)} pictures, the first: {missing[0]}")
        return [(sharp_folder / p.name, p) for p in blurry]

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> tuple[Tensor, Tensor]:
        """Whole pair number i: (y0, x), both (1, 3, h, w) in [-1, 1]."""
        sharp, blurry = (read_image(path) for path in self.paths[i])
        if sharp.shape != blurry.shape:
            raise ImageError(
                f"{self.paths[i][1]}: sizes of the pair differ, {tuple(sharp.shape)} and {tuple(blurry.shape)}"
            )
        return to_model(sharp)[None].to(self.device), to_model(blurry)[None].to(self.device)

    def crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(y0, x), both (n, 3, size, size): picture, place and mirroring drawn from (seed, index)."""
        draws = Draws(self.seed, index.cpu())
        which, place, flip = draws.integers(len(self)).tolist(), draws.uniform(2).tolist(), draws.integers(2).tolist()
        cut = []
        for i, (top, left), mirrored in zip(which, place, flip, strict=True):
            pair = torch.cat(self.image(i))
            h, w = pair.shape[-2:]
            if min(h, w) < size:
                raise ImageError(f"{self.paths[i][1]}: {h}x{w} is smaller than the crop of {size}")
            top, left = int(top * (h - size + 1)), int(left * (w - size + 1))
            pair = pair[..., top : top + size, left : left + size]
            cut.append(pair.flip(-1) if mirrored else pair)
        y0, x = torch.stack(cut, dim=1)
        return y0, x


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

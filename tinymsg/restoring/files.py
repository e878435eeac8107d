"""Photographs in and out as they are: their bits, gray, transparency, colour profile and metadata.

The network works on display values as they stand, without any conversion of colours: a profile is carried along. CMYK
alone is converted, to sRGB. PIL reads and writes nearly all; 16 bits per channel, which it cuts to 8, are decoded by
imagecodecs (PNG) and tifffile.
"""

import io
import math
import os
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageError, gray_levels, open_picture
from ..machine import atomic_write

MAX_PIXELS = 99_999_999  # more are taken for a decompression bomb; PIL's own limit, at 179 million, stays
HALF_FROM = 2**22  # pixels from which on the network's input is held as float16: 13 bits near black and white
_ROWS = 256  # converted at a time, so that a large picture is never held twice
_ORIENTATION, _XMP = 0x0112, 700
_EXIF, _GPS, _INTEROP = 0x8769, 0x8825, 0xA005  # directories within EXIF data
# What of a TIFF's directory is about the picture rather than about how the file stores it
_DESCRIPTIVE = {270, 271, 272, 274, 305, 306, 315, 316, 18246, 18249, 33432, 34665, 34853, *range(40091, 40096)}


class Form(NamedTuple):
    """A format that can be written, and what it holds."""

    name: str  # PIL's
    options: dict[str, Any] = {}
    alpha: bool = True
    gray: bool = True
    deep: bool = False  # 16 bits per channel


_JPEG = Form("JPEG", {"quality": 95, "subsampling": 0}, alpha=False)  # 4:4:4
_TIFF = Form("TIFF", deep=True)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12
_HEIF = Form("HEIF", {"quality": 90, "chroma": 444}, gray=False)
FORMS = {
    ".png": Form("PNG", deep=True),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": Form("WEBP", {"quality": 95, "exact": True}, gray=False),
    ".bmp": Form("BMP", alpha=False),
    ".avif": Form("AVIF", {"quality": 90, "subsampling": "4:4:4"}, gray=False),
    ".heic": _HEIF,
    ".heif": _HEIF,
    ".hif": _HEIF,
}
READABLE = (*FORMS, ".jfif", ".jpe", ".gif", ".jp2", ".ppm", ".pgm", ".tga")  # suffixes, in folders
_WORDS = {"exif": "EXIF data", "icc_profile": "its colour profile", "xmp": "XMP data", "dpi": "its resolution"}


@dataclass
class Photo:
    """A picture as its file holds it, upright."""

    pixels: np.ndarray  # (h, w, 1 or 3) uint8 or uint16; 1: gray
    alpha: np.ndarray | None = None  # (h, w), of the same type; None: opaque everywhere
    metadata: dict[str, Any] = field(default_factory=dict)  # any of exif, icc_profile, xmp (bytes), dpi (two numbers)
    notes: list[str] = field(default_factory=list)  # what could not be kept, in a few words each


# --- reading ------------------------------------------------------------------------------------------------


def heic() -> bool:
    """Whether HEIC pictures can be read and written: what the extra `heic` is for."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _needs_heic(path: Path) -> ImageError:
    return ImageError(f"{path}: HEIC pictures need the package pillow-heif; pip install 'tinymsg[heic]'")


def photo_size(path: Path) -> tuple[int, int]:
    """(w, h) as a picture's header says, (0, 0) of what cannot be read."""
    from PIL import Image

    heic()
    with warnings.catch_warnings(action="ignore"), suppress(Exception), Image.open(path) as image:
        return image.size
    return 0, 0


def open_photo(path: Path) -> Photo:
    """Read a picture of 8 or 16 bits, gray or colour, with or without transparency; the orientation is applied.

    Raises: ImageError, with one sentence, for what is missing, damaged, no single picture, or over MAX_PIXELS.
    """
    from PIL import PngImagePlugin
    from PIL.TiffImagePlugin import OPEN_INFO

    if not heic():
        with suppress(OSError), path.open("rb") as file:  # what cannot be opened is told below
            head = file.read(64)
            if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS and b"avif" not in head:
                raise _needs_heic(path)
    PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes of a profile or of text: PIL's limit of a million calls them damage
    for order in (b"II", b"MM"):  # PIL does not know 16-bit gray with transparency; it opens it for the metadata alone
        OPEN_INFO.setdefault((order, 1, (1,), 1, (16, 16), (2,)), ("LA", "LA"))
    with warnings.catch_warnings(action="ignore"), open_picture(path, MAX_PIXELS) as image:  # PIL's, of broken metadata
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's JPEG with a second view
            what = f"holds {image.n_frames} pages or frames, one is wanted; save the one you mean as a picture"
            raise ImageError(f"{path}: {what}")
        with suppress(Exception):  # read now: a TIFF is closed with its pixels loaded, and damage is told below
            _inner(image.getexif())
        deep = _deep_pixels(path, image)
        if deep is None or image.format == "PNG":
            image.load()  # a PNG's metadata may follow its pixels
        orientation, metadata, notes = _metadata(image)
        if deep is None and image.mode == "CMYK":
            image = _cmyk_to_rgb(image)
            metadata.pop("icc_profile", None)
            notes.append("CMYK became sRGB")
        pixels = _pil_pixels(image) if deep is None else deep
    # Turned, then mirrored (EXIF 2.32, orientation)
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    colours = 1 if pixels.shape[2] < 3 else 3
    alpha = np.ascontiguousarray(pixels[..., colours]) if pixels.shape[2] > colours else None
    return Photo(np.ascontiguousarray(pixels[..., :colours]), alpha, metadata, notes)


def _pil_pixels(image) -> np.ndarray:
    """(h, w, 1 to 4) uint8 of what PIL has read; uint16 of what it holds as larger numbers."""
    if image.mode.startswith(("I", "F")):
        return (gray_levels(image) * 65535).round().astype(np.uint16)[..., None]
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode == "P":
        red, green, blue = np.reshape(image.getpalette("RGB"), (-1, 3)).T
        gray = (red == green).all() and (green == blue).all()
    mode = "L" if gray else "RGB"
    pixels = np.array(image.convert(mode + "A" if image.has_transparency_data else mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep_pixels(path: Path, image) -> np.ndarray | None:
    """(h, w, 1 to 4) uint16 of a PNG or TIFF with 16 bits per channel; None of any other picture."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF: bits, what they mean, and that they are unsigned
    try:
        if image.format == "PNG" and (data := path.read_bytes())[24] == 16:  # IHDR's bit depth
            import imagecodecs

            pixels = imagecodecs.png_decode(data)
            return pixels if pixels.ndim == 3 else pixels[..., None]
        if image.format == "PNG" and image.mode == "L" and isinstance(key := image.info.get("transparency"), int):
            image.info["transparency"] = key * 255 // (2 ** path.read_bytes()[24] - 1)  # a level of 2, 4 or 8 bits
        if set(tags.get(258, ())) == {16} and tags.get(262) in (0, 1, 2) and set(tags.get(339, (1,))) == {1}:
            return _tiff_pixels(path)
    except MemoryError:
        raise
    except Exception as error:  # each codec has its own
        raise ImageError(f"{path}: damaged or unreadable ({str(error).splitlines()[0]})") from None
    return None


def _tiff_pixels(path: Path) -> np.ndarray:
    """(h, w, 1 to 4) uint16: gray or colours, and alpha if there is one."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        pixels = page.asarray()
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif page.planarconfig == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    colours = 3 if page.photometric == 2 else 1
    kind = int(page.extrasamples[0]) if page.extrasamples else 0  # 1: colours were multiplied by alpha, 2: were not
    if page.photometric == 0:  # zero is white
        pixels[..., 0] = 65535 - pixels[..., 0]
    if kind == 1:
        alpha = np.maximum(pixels[..., colours:], 1)[..., :1]
        pixels[..., :colours] = np.minimum(pixels[..., :colours] * np.float32(65535) / alpha, 65535).round()
    return pixels[..., : colours + (kind > 0)]


def _metadata(image) -> tuple[int, dict[str, Any], list[str]]:
    """(orientation 1 to 8, what Photo.metadata holds, notes) of an opened picture."""
    info, notes = image.info, []
    found = {"icc_profile": info.get("icc_profile"), "xmp": info.get("xmp"), "dpi": info.get("dpi")}
    orientation = 1
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        for tag in set(exif) - _DESCRIPTIVE if image.format == "TIFF" else ():
            del exif[tag]
        found["exif"] = _verbatim(exif).tobytes() if set(exif) - {_ORIENTATION} else None  # it may be from XMP data
    except Exception:  # PIL's parser meets damage with whatever its parts raise
        notes.append("without its EXIF data, which is damaged")
    gamma = info.get("gamma") or 1 / 2.2
    if image.format == "PNG" and not {"icc_profile", "srgb"} & set(info) and abs(gamma - 1 / 2.2) > 0.01:
        notes.append(f"without the gamma of {1 / gamma:.2g} that it states")
    if isinstance(xmp := found["xmp"], str):
        found["xmp"] = xmp = xmp.encode()
    if xmp:
        found["xmp"] = re.sub(rb"(tiff:Orientation(?:=[\"']|>))[0-9]", rb"\g<1>1", xmp)
    with suppress(TypeError, ValueError, ZeroDivisionError):
        dpi = tuple(float(value) for value in found.pop("dpi"))
        found["dpi"] = dpi if all(1 < value < math.inf for value in dpi) else None  # (1, 1): PIL's for none
    return orientation, {name: value for name, value in found.items() if value}, notes


class _Text(str):
    """Written as the bytes that PIL has read it from, where PIL would write a question mark for all but ASCII."""

    def encode(self, encoding: str = "latin-1", errors: str = "replace") -> bytes:  # whatever PIL asks for
        return super().encode("latin-1", "replace")


def _inner(exif) -> dict[int, dict]:
    """The directories that EXIF data has within."""
    found = {tag: exif.get_ifd(tag) for tag in (_EXIF, _GPS) if tag in exif}
    return found | ({_INTEROP: exif.get_ifd(_INTEROP)} if _INTEROP in found.get(_EXIF, {}) else {})


def _verbatim(exif):
    """EXIF data whose texts are written as they were read."""
    inner = _inner(exif)
    if _INTEROP in inner:  # itself, in the place of where it stood
        inner[_EXIF][_INTEROP] = inner[_INTEROP]
    for directory in (exif, *inner.values()):
        for tag, value in list(directory.items()):
            if isinstance(value, str):
                directory[tag] = _Text(value)
    return exif


def _cmyk_to_rgb(image):
    """By the picture's own profile where it has a good one."""
    from PIL import ImageCms

    with suppress(ImageCms.PyCMSError, ImportError, OSError):
        if profile := image.info.get("icc_profile"):
            return ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
    return image.convert("RGB")


# --- to the network and back --------------------------------------------------------------------------------


def network_input(photo: Photo) -> Tensor:
    """(3, h, w) in [-1, 1], float32, of large pictures float16; gray three times, transparent places filled in.

    A partly transparent pixel counts as its colour says; where alpha is 0 the colours around spread into the gap.
    """
    h, w, _ = photo.pixels.shape
    x = torch.empty(3, h, w, dtype=torch.float16 if h * w >= HALF_FROM else torch.float32)
    scale = 2 / np.iinfo(photo.pixels.dtype).max
    for top in range(0, h, _ROWS):
        rows = photo.pixels[top : top + _ROWS].astype(np.float32) * scale - 1
        x[:, top : top + _ROWS] = torch.from_numpy(rows).permute(2, 0, 1)
    if photo.alpha is not None and not photo.alpha.all():
        _spread(x[None], torch.from_numpy(photo.alpha > 0)[None, None].to(x.dtype))
    return x


def _spread(x: Tensor, seen: Tensor) -> Tensor:
    """x (1, c, h, w), in its place: kept where `seen` (1, 1, h, w) is 1, elsewhere filled smoothly, coarse to fine."""
    x *= seen
    if seen.shape[-2:] == (1, 1):
        return x
    # ceil_mode: odd sides keep their last pixels; the mean is over what lies inside
    share, coarse = (F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in (seen, x))
    coarse = _spread(coarse.div_(share.clamp(min=0.1)), (share > 0).to(x.dtype))  # of 4 pixels at least a quarter
    return x.add_(F.interpolate(coarse, size=x.shape[-2:], mode="bilinear").mul_(1 - seen))


def put_back(photo: Photo, y0_hat: Tensor) -> None:
    """Write the network's answer (3, h, w) in [-1, 1] over a photo's pixels, but where it is fully transparent."""
    top_value = np.iinfo(photo.pixels.dtype).max
    for top in range(0, len(photo.pixels), _ROWS):
        rows = photo.pixels[top : top + _ROWS]
        answer = y0_hat[:, top : top + _ROWS].float()
        answer = answer.mean(0, keepdim=True) if rows.shape[2] == 1 else answer
        levels = ((answer + 1) / 2 * top_value).round().clamp(0, top_value).permute(1, 2, 0).cpu().numpy()
        shown = True if photo.alpha is None else photo.alpha[top : top + _ROWS, :, None] > 0
        np.copyto(rows, levels, where=shown, casting="unsafe")


# --- writing ------------------------------------------------------------------------------------------------


def check_target(path: Path, overwrite: bool) -> None:
    """Raise ImageError, one sentence, unless a picture can be written to `path`; nothing is created."""
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise ImageError(
            f"{path}: cannot be written as {path.suffix or 'a file without suffix'}; use {', '.join(FORMS)}"
        )
    if form is _HEIF and not heic():
        raise _needs_heic(path)
    if path.is_dir():
        raise ImageError(f"{path} is a folder; give the file another name")
    if path.exists() and not overwrite:
        raise ImageError(f"{path} exists; --overwrite replaces it")
    if path.exists() and not path.stat().st_mode & 0o222:  # its own mode: everything is writable for root
        raise ImageError(f"{path} is read-only; write elsewhere or make it writable")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ImageError(f"{path}: nothing can be written to {folder}; choose another place")


def save_photo(path: Path, photo: Photo) -> tuple[Path, list[str]]:
    """Write a picture; the suffix decides the format. It appears whole or not at all.

    What the format cannot hold is left out and noted. A picture that the format refuses is written beside, as PNG.
    Returns: where it was written, and notes. Raises: ImageError if the disk is full or the folder not writable.
    """
    form, notes = FORMS[path.suffix.lower()], list(photo.notes)
    heic()
    try:
        data = _encode(form, photo, notes)
    except MemoryError:
        raise
    except Exception as error:  # each encoder has its own
        if form.name == "PNG":
            raise ImageError(f"{path}: could not be written ({error})") from None
        beside = (path.with_name(f"{path.name}{number or ''}.png") for number in count())
        path, notes = next(place for place in beside if not place.exists()), list(photo.notes)
        notes.append(f"as PNG, because {form.name} failed ({str(error).splitlines()[0]})")
        data = _encode(FORMS[".png"], photo, notes)
    try:
        with atomic_write(path) as partial, open(partial, "wb") as file:
            file.write(data)
    except OSError as error:
        raise ImageError(f"{path}: could not be written ({error.strerror or error})") from None
    return path, notes


def _encode(form: Form, photo: Photo, notes: list[str]) -> memoryview:
    """The bytes of a file. In memory: PIL's own writing to files does not notice a disk that fills up at the end."""
    from PIL import Image

    pixels, alpha, lost = photo.pixels, photo.alpha, []
    if pixels.dtype == np.uint16 and not form.deep:
        pixels, alpha = eight_bits(pixels), None if alpha is None else eight_bits(alpha)
        lost.append("16 bits")
    if alpha is not None and not form.alpha:
        pixels = _over_white(pixels, alpha)
        alpha, _ = None, lost.append("transparency (now over white)")
    if pixels.shape[2] == 1 and not form.gray:
        pixels = pixels.repeat(3, axis=2)
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None]], axis=2)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    metadata = {name: value for name, value in photo.metadata.items() if _holds(form, mode, name, value)}
    lost += [_WORDS[name] for name in photo.metadata if name not in metadata]
    if lost:
        notes.append(f"without {', '.join(lost)}, which {form.name} cannot hold")
    file = io.BytesIO()
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
        image.save(file, form.name, **form.options, **_pil_options(form, metadata))
    elif form.name == "PNG":
        _deep_png(file, pixels, metadata)
    else:
        _deep_tiff(file, pixels, metadata)
    return file.getbuffer()


def eight_bits(values: np.ndarray) -> np.ndarray:
    """The same picture of 8 bits per channel."""
    if values.dtype == np.uint8:
        return values
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Laid over white, 8 bits."""
    share = alpha[..., None].astype(np.float32) / 255
    return (pixels * share + 255 * (1 - share)).round().astype(np.uint8)


def _pil_options(form: Form, metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata as options of PIL's save."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    options = dict(metadata)
    if form.name == "TIFF" and {"exif", "xmp"} & options.keys():
        options["exif"] = exif = Image.Exif()
        exif.load(metadata.get("exif", b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"))
        if xmp := options.pop("xmp", None):
            exif[_XMP] = xmp
        _verbatim(exif)
    elif form.name == "PNG" and "xmp" in options:
        options["pnginfo"] = text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode("utf-8", "replace"))
    return options


def _holds(form: Form, mode: str, name: str, value: Any) -> bool:
    """Whether a format takes this piece of metadata: tried on one pixel, before the picture depends on it."""
    from PIL import Image

    if name == "icc_profile" and value[16:20] != (b"GRAY" if mode[0] == "L" else b"RGB "):  # of CMYK, or of gray
        return False
    with suppress(Exception):
        file = io.BytesIO()
        Image.new(mode, (1, 1)).save(file, form.name, **_pil_options(form, {name: value}))
        with Image.open(file) as image:
            image.load()
            return bool(len(image.getexif()) if name == "exif" else image.info.get(name))
    return False


def _deep_png(file: BinaryIO, pixels: np.ndarray, metadata: dict[str, Any]) -> None:
    """A PNG of 16 bits per channel, with the chunks in which PIL puts metadata."""
    import imagecodecs
    from PIL import Image

    small = io.BytesIO()
    Image.new("L" if pixels.shape[2] < 3 else "RGB", (1, 1)).save(small, "PNG", **_pil_options(FORMS[".png"], metadata))
    chunks = small.getvalue()[33:]  # after IHDR
    data = memoryview(imagecodecs.png_encode(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))
    for part in (data[:33], chunks[: chunks.rindex(b"IDAT") - 4], data[33:]):
        file.write(part)


def _deep_tiff(file: BinaryIO, pixels: np.ndarray, metadata: dict[str, Any]) -> None:
    """A TIFF of 16 bits per channel, uncompressed, in one strip. PIL writes the directory (TIFF 6.0)."""
    from PIL import Image, TiffTags
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    (h, w, channels), directory = pixels.shape, ImageFileDirectory_v2()
    exif = Image.Exif()
    if "exif" in metadata:
        exif.load(metadata["exif"])
    for tag, value in _verbatim(exif).items():
        directory[tag] = exif.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else value
    for tag, name in ((_XMP, "xmp"), (34675, "icc_profile")):
        if name in metadata:
            directory[tag] = metadata[name]
    if "dpi" in metadata:
        directory[282], directory[283], directory[296] = *metadata["dpi"], 2
    directory[256], directory[257], directory[258], directory[259] = w, h, (16,) * channels, 1
    directory[262], directory[277], directory[278], directory[284] = 1 if channels < 3 else 2, channels, h, 1
    if channels in (2, 4):
        directory[338] = 2  # alpha that the colours were not multiplied by
    directory[273], directory[279] = 0, pixels.nbytes  # counted from the directory's end
    directory.save(file)
    file.write(np.ascontiguousarray(pixels, dtype="<u2").data)

"""Photographs in and out: bits, gray, transparency, profiles and metadata survive; what cannot be kept is said."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tinymsg.cli import main
from tinymsg.cli.deblur import quality_setting
from tinymsg.data import ImageError
from tinymsg.restoring import files
from tinymsg.restoring.files import Photo, check_target, network_input, open_photo, put_back, save_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY = SRGB[:16] + b"GRAY" + SRGB[20:]  # as far as anybody here looks
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
TAKEN = "2020:01:01 00:00:00"


def exif(orientation: int = 1, note: bytes = b"") -> bytes:
    data = Image.Exif()
    data[0x010F], data[0x0112] = "ACME", orientation
    data[0x8769], data[0x8825] = {0x9003: TAKEN, 0x927C: note}, {1: "N"}  # when, the maker's own note; where
    return data.tobytes()


def metadata(gray: bool = False, orientation: int = 1) -> dict:
    profile = GRAY if gray else SRGB
    return {"exif": exif(orientation), "icc_profile": profile, "xmp": XMP % orientation, "dpi": (300.0, 300.0)}


def pixels(channels: int, dtype=np.uint8, size=(13, 9)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (*size, channels)).astype(dtype)


def photo(channels: int = 3, dtype=np.uint8, transparent: bool = False, **options) -> Photo:
    alpha = None
    if transparent:
        alpha = pixels(1, dtype)[..., 0]
        alpha[:3] = 0
    return Photo(pixels(channels, dtype), alpha, **({"metadata": metadata(channels == 1)} | options))


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b is None or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b))


# --- there and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_everything(tmp_path, suffix, dtype, transparent, channels):
    before = photo(channels, dtype, transparent)
    path, notes = save_photo(tmp_path / f"a.{suffix}", before)
    after = open_photo(path)
    assert same(after.pixels, before.pixels) and same(after.alpha, before.alpha)
    assert notes == after.notes == []
    for name in ("icc_profile", "xmp"):
        assert after.metadata[name] == before.metadata[name]
    assert after.metadata["dpi"] == pytest.approx((300, 300), abs=0.01)
    data = Image.Exif()
    data.load(after.metadata["exif"])
    assert data[0x010F] == "ACME" and data.get_ifd(0x8769)[0x9003] == TAKEN and data.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "avif", "heic"])
def test_other_formats_say_what_they_cannot_hold(tmp_path, suffix):
    if suffix == "heic":
        pytest.importorskip("pillow_heif")
    before = photo(3, np.uint16, transparent=True)
    before.pixels[:] = 40_000
    before.alpha[3:] = 65535
    path, notes = save_photo(tmp_path / f"a.{suffix}", before)
    after, said = open_photo(path), " ".join(notes)
    assert len(notes) == 1 and "16 bits" in said
    assert after.pixels.dtype == np.uint8 and abs(after.pixels[5:].astype(int) - 40_000 // 257).max() <= 3
    assert (after.alpha is None) == ("transparency" in said) == (suffix in ("jpg", "bmp"))
    if after.alpha is None:
        assert (after.pixels[:2] >= 252).all(), "white where nothing was"
    for name, word in (("exif", "EXIF"), ("icc_profile", "profile"), ("xmp", "XMP"), ("dpi", "resolution")):
        assert (name in after.metadata) != (word in said)


def test_jpeg_keeps_all_colours_at_high_quality(tmp_path):
    path, _ = save_photo(tmp_path / "a.jpg", photo())
    with Image.open(path) as image:
        assert [layer[1:3] for layer in image.layer] == 3 * [(1, 1)]  # 4:4:4
        assert max(image.quantization[0]) <= 12


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_gray_stays_gray(tmp_path, suffix):
    gray = np.linspace(0, 255, 16 * 16).astype(np.uint8).reshape(16, 16, 1)
    after = open_photo(save_photo(tmp_path / f"a.{suffix}", Photo(gray))[0])
    assert after.pixels.shape[2] == (3 if suffix == "webp" else 1)
    assert np.ptp(after.pixels.astype(int), axis=2).max() <= (2 if suffix == "webp" else 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(tmp_path, orientation, suffix, dtype):
    """Held against PIL's own; a second reading of what was written turns nothing."""
    stored = photo(3, dtype, metadata=metadata(orientation=orientation))
    path, _ = save_photo(tmp_path / f"a.{suffix}", stored)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)  # Image.Transpose
    planes = [Image.fromarray(plane) for plane in stored.pixels.transpose(2, 0, 1)]
    expected = np.stack([np.asarray(p if turn is None else p.transpose(turn)) for p in planes], axis=2)
    upright = open_photo(path)
    assert same(upright.pixels, expected)
    again = open_photo(save_photo(tmp_path / f"b.{suffix}", upright)[0])
    assert same(again.pixels, expected)
    assert dtype == np.uint8 and suffix == "tif" or again.metadata["xmp"] == XMP % 1


def test_a_palette_one_bit_and_fractions(tmp_path):
    picture = Image.fromarray(pixels(3)).quantize(16)
    picture.save(tmp_path / "p.png", transparency=3)
    read = open_photo(tmp_path / "p.png")
    assert same(read.pixels, np.asarray(picture.convert("RGB")))
    assert same(read.alpha, np.where(np.asarray(picture) == 3, 0, 255).astype(np.uint8))
    Image.fromarray(pixels(1)[..., 0] > 127).save(tmp_path / "1.png")
    assert same(open_photo(tmp_path / "1.png").pixels, np.where(pixels(1) > 127, 255, 0).astype(np.uint8))
    Image.fromarray((pixels(1)[..., 0] / 255).astype(np.float32)).save(tmp_path / "f.tif")
    assert same(open_photo(tmp_path / "f.tif").pixels, pixels(1).astype(np.uint16) * 257)


def test_a_palette_of_grays_is_gray(tmp_path):
    gray = Image.fromarray(pixels(1)[..., 0] // 16 * 17)
    gray.convert("P").save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
    assert same(open_photo(tmp_path / "a.png").pixels, np.asarray(gray)[..., None])


def test_highlights_of_a_picture_of_fractions_are_clipped(tmp_path):
    light = np.linspace(0, 1.2, 117, dtype=np.float32).reshape(13, 9)
    Image.fromarray(light).save(tmp_path / "a.tif")
    expected = (light.clip(0, 1) * 65535).round().astype(np.uint16)
    assert same(open_photo(tmp_path / "a.tif").pixels[..., 0], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_level_of_gray_that_is_transparent(tmp_path, bits):
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4) & (2**bits - 1)
    per_byte = 8 // bits
    packed = (levels.reshape(4, -1, per_byte) << np.arange(8 - bits, -1, -bits)).sum(axis=2).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">H", 2)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    read = open_photo(tmp_path / "a.png")
    assert same(read.alpha, np.where(levels == 2, 0, 255).astype(np.uint8))
    assert same(read.pixels[..., 0], (levels * (255 // (2**bits - 1))).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("xmp", [False, True])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_texts_that_are_not_ascii_survive(tmp_path, suffix, dtype, xmp):
    """Of EXIF data, which PIL would write with question marks; read as UTF-8, as cameras and editors write them."""
    data = Image.Exif()
    data[0x013B], data[0x8769] = "Jxxrgen xx", {0xA434: "Weixxer Strahl", 0x9003: TAKEN}
    written = data.tobytes().replace(b"Jxxrgen xx", "Jürgen ©".encode()).replace(b"Weixxer", "Weißer".encode())
    path = tmp_path / f"a.{suffix}"
    save_photo(path, photo(3, dtype, metadata={"exif": written, "xmp": XMP % 1} if xmp else {"exif": written}))
    for number in range(2):  # what was written is read again
        read = Image.Exif()
        read.load(open_photo(path).metadata["exif"])
        texts = read[0x013B], read.get_ifd(0x8769)[0xA434]
        assert [text.encode("latin-1").decode() for text in texts] == ["Jürgen ©", "Weißer Strahl"]
        path, _ = save_photo(tmp_path / f"{number}.{suffix}", open_photo(path))


def test_a_directory_within_the_exif_data_of_a_tiff(tmp_path):
    """Interop, which many cameras write."""
    data = Image.Exif()
    data[0x010F], data[0x8769] = "ACME", {0x9003: TAKEN, 0xA005: {1: "R98"}}
    path, notes = save_photo(tmp_path / "a.tif", photo(metadata={"exif": data.tobytes()}))
    read = open_photo(path)
    assert notes == read.notes == []
    data = Image.Exif()
    data.load(read.metadata["exif"])
    assert data[0x010F] == "ACME" and data.get_ifd(0x8769)[0x9003] == TAKEN and data.get_ifd(0xA005)[1] == "R98"


def test_a_gamma_that_is_not_kept_is_said(tmp_path):
    image = Image.fromarray(pixels(3))
    for number, gamma in enumerate((45455, 100_000, 0)):
        text = PngInfo()
        text.add(b"gAMA", struct.pack(">I", gamma))
        image.save(tmp_path / f"{number}.png", pnginfo=text)
    assert open_photo(tmp_path / "0.png").notes == open_photo(tmp_path / "2.png").notes == []
    assert open_photo(tmp_path / "1.png").notes == ["without the gamma of 1 that it states"]


def test_tiffs_of_16_bits_as_other_programs_write_them(tmp_path):
    """Planes one after the other, tiles, zero for white, colours multiplied by alpha, a channel that means nothing."""
    path, rgb, rgba = tmp_path / "a.tif", pixels(3, np.uint16), pixels(4, np.uint16)
    tifffile.imwrite(path, rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", compression="lzw")
    assert same(open_photo(path).pixels, rgb)
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(16, 16), byteorder=">", compression="zlib", predictor=True)
    assert same(open_photo(path).pixels, rgb)
    tifffile.imwrite(path, rgb[..., 0], photometric="miniswhite")
    assert same(open_photo(path).pixels, 65535 - rgb[..., :1])
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unspecified"])
    assert open_photo(path).alpha is None
    rgba[..., 3] = 32768
    multiplied = rgba.copy()
    multiplied[..., :3] = rgba[..., :3] // 2
    tifffile.imwrite(path, multiplied, photometric="rgb", extrasamples=["assocalpha"])
    read = open_photo(path)
    assert same(read.alpha, rgba[..., 3]) and abs(read.pixels.astype(int) - rgba[..., :3]).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_pixel_of_16_bits(tmp_path, suffix, channels):
    pixel = pixels(4, np.uint16, (1, 1))
    alpha = pixel[..., 3] if channels % 2 == 0 else None
    before = Photo(pixel[..., : 1 if channels < 3 else 3].copy(), alpha)
    after = open_photo(save_photo(tmp_path / f"a.{suffix}", before)[0])
    assert same(after.pixels, before.pixels) and same(after.alpha, before.alpha)


def test_cmyk_becomes_rgb_and_says_so(tmp_path):
    plate = np.zeros((8, 8, 4), np.uint8)
    plate[..., 0] = 255  # full cyan: red is absorbed
    Image.fromarray(plate, mode="CMYK").save(tmp_path / "a.tif", icc_profile=SRGB[:16] + b"CMYK" + SRGB[20:])
    read = open_photo(tmp_path / "a.tif")
    assert read.pixels[0, 0].tolist() == [0, 255, 255] and "icc_profile" not in read.metadata
    assert any("CMYK" in note for note in save_photo(tmp_path / "b.png", read)[1])


def test_heic_there_and_back(tmp_path):
    pytest.importorskip("pillow_heif")
    flat = Photo(np.full((20, 30, 3), (200, 100, 50), np.uint8), metadata=metadata())
    read = open_photo(save_photo(tmp_path / "a.heic", flat)[0])
    assert abs(read.pixels.astype(int) - flat.pixels).max() <= 3
    assert read.metadata["icc_profile"] == SRGB and b"ACME" in read.metadata["exif"]


def test_heic_without_its_package_is_one_sentence_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "heic", lambda: False)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    for what in (lambda: open_photo(tmp_path / "a.jpg"), lambda: check_target(tmp_path / "b.heic", False)):
        with pytest.raises(ImageError, match=r"tinymsg\[heic\]"):
            what()
    for name, brands in (("a.mp4", b"isom\0\0\0\0mp42"), ("a.avif", b"mif1\0\0\0\0mif1avif")):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(100))
        with pytest.raises(ImageError, match="damaged|not a picture"):  # none of these is HEIC
            open_photo(tmp_path / name)


# --- transparency and the network -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_transparent_neither_bleeds_in_nor_changes(dtype):
    top = np.iinfo(dtype).max
    shown = np.full((21, 34, 3), top // 2, dtype)
    alpha = np.full((21, 34), top, dtype)
    alpha[5:15, 8:], alpha[0, 0], alpha[20, :] = 0, 0, 1  # a hole, a corner, a nearly transparent row
    inputs = []
    for hidden in (0, top):
        colours = shown.copy()
        colours[alpha == 0] = hidden
        inputs.append(network_input(Photo(colours, alpha)))
    assert torch.equal(*inputs) and inputs[0].abs().max() < 0.01, "the gap is filled from around it"
    restored = Photo(colours.copy(), alpha)
    put_back(restored, torch.full((3, 21, 34), -1.0))
    assert (restored.pixels[alpha == 0] == top).all() and (restored.pixels[alpha > 0] == 0).all()
    assert torch.isfinite(network_input(Photo(colours, alpha * 0))).all(), "nothing to see at all"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_survive_the_way_to_the_network_and_back(channels, dtype, half, monkeypatch):
    """More rows than are converted at a time; as float16 8 bits come back exactly, 16 bits to 13 bits."""
    monkeypatch.setattr(files, "HALF_FROM", 1 if half else 10**9)
    before = Photo(pixels(channels, dtype, (700, 3)))
    x = network_input(before)
    assert x.shape == (3, 700, 3) and x.abs().max() <= 1 and x.dtype == (torch.float16 if half else torch.float32)
    after = Photo(np.zeros_like(before.pixels))
    put_back(after, x * 1.0001)  # an answer may lie a little outside
    error = abs(after.pixels.astype(int) - before.pixels).max()
    assert error <= (12 if dtype == np.uint16 and half else 4 if dtype == np.uint16 else 0)


# --- what cannot be read ----------------------------------------------------------------------------------------


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes that says it has side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_what_cannot_be_used_is_one_sentence(tmp_path):
    frames = [Image.fromarray(pixels(3) // n) for n in (1, 2)]
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    whole = {}
    for name in ("deep.png", "deep.tif"):
        whole[name] = save_photo(tmp_path / name, photo(dtype=np.uint16, metadata={}))[0].read_bytes()
    (tmp_path / "torn.png").write_bytes(whole["deep.png"][:300])
    (tmp_path / "torn.tif").write_bytes(whole["deep.tif"][:-200])
    bomb(tmp_path / "bomb.png", 10_000)
    bomb(tmp_path / "huge.png", 20_000)
    limit = Image.MAX_IMAGE_PIXELS
    for name, word in [
        *((f"a.{suffix}", "2 pages or frames") for suffix in ("gif", "tif", "webp", "png")),
        ("text.png", "not a picture"),
        ("folder.png", "directory"),
        ("nowhere.png", "no such file"),
        ("torn.png", "damaged"),
        ("torn.tif", "damaged"),
        ("bomb.png", "the limit is"),
        ("huge.png", "the limit is"),
    ]:
        with pytest.raises(ImageError) as caught:
            open_photo(tmp_path / name)
        said = str(caught.value)
        assert said.startswith(str(tmp_path / name)) and word in said and "\n" not in said
    assert limit == Image.MAX_IMAGE_PIXELS is not None, "PIL's own guard stays"


def test_whatever_a_decoder_raises_is_one_sentence(tmp_path, monkeypatch):
    path, _ = save_photo(tmp_path / "a.png", photo(metadata={}))

    def meet(error):
        def load(image):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
        open_photo(path)

    for error in (RuntimeError("Failed to decode frame 0"), TypeError("Missing dimensions"), struct.error("short")):
        with pytest.raises(ImageError, match=f"a.png: damaged or unreadable .{error}"):
            meet(error)
    with pytest.raises(RuntimeError, match="out of memory"):  # which is not the file's fault
        meet(RuntimeError("out of memory"))


def test_a_phones_jpeg_with_a_second_view_is_a_photograph(tmp_path):
    frames = [Image.fromarray(pixels(3) // n) for n in (1, 2)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert open_photo(tmp_path / "a.jpg").pixels.shape == (13, 9, 3)


def test_metadata_of_megabytes_is_no_damage(tmp_path):
    profile = SRGB + bytes(2_000_000)
    path, _ = save_photo(tmp_path / "a.png", photo(metadata={"icc_profile": profile}))
    assert open_photo(path).metadata["icc_profile"] == profile


def test_damaged_metadata_does_not_cost_the_picture(tmp_path):
    Image.fromarray(pixels(3)).save(
        tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(5), pnginfo=PngInfo()
    )
    read = open_photo(tmp_path / "a.png")
    assert same(read.pixels, pixels(3))
    assert same(open_photo(save_photo(tmp_path / "b.png", read)[0]).pixels, pixels(3))


# --- what cannot be written -------------------------------------------------------------------------------------


def test_metadata_too_long_for_jpeg_does_not_cost_the_picture(tmp_path):
    long = photo(metadata=metadata() | {"exif": exif(note=bytes(70_000))})
    path, notes = save_photo(tmp_path / "a.jpg", long)
    read = open_photo(path)
    assert "exif" not in read.metadata and read.metadata["icc_profile"] == SRGB
    assert len(notes) == 1 and "EXIF" in notes[0] and "profile" not in notes[0]
    assert "exif" in open_photo(save_photo(tmp_path / "a.png", long)[0]).metadata


def test_what_a_format_refuses_is_written_as_png_beside(tmp_path):
    wide = Photo(pixels(3, size=(1, 17_000)))  # WebP ends at 16,383
    (tmp_path / "a.webp.png").write_text("precious")
    path, notes = save_photo(tmp_path / "a.webp", wide)
    assert path.suffix == ".png" and same(open_photo(path).pixels, wide.pixels) and "PNG" in notes[0]
    assert {p.name for p in tmp_path.iterdir()} == {"a.webp.png", path.name}
    assert (tmp_path / "a.webp.png").read_text() == "precious"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_full_disk_leaves_nothing(tmp_path, suffix, dtype):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = Photo(pixels(3, dtype, (100, 100)))
    (tmp_path / f"a.{suffix}").write_text("precious")
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # holds for root, too
    try:
        with pytest.raises(ImageError, match="could not be written"):
            save_photo(tmp_path / f"a.{suffix}", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"]
    assert (tmp_path / f"a.{suffix}").read_text() == "precious"


def test_targets_that_cannot_be_written_are_known_before(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "there.png").touch()
    (tmp_path / "kept.png").touch(mode=0o444)
    for name, overwrite, word in [
        ("a.gif", False, ".png, .jpg"),
        ("folder.png", True, "is a folder"),
        ("file/a.png", False, "nothing can be written"),
        ("there.png", False, "--overwrite"),
        ("kept.png", True, "read-only"),
    ]:
        with pytest.raises(ImageError, match=word):
            check_target(tmp_path / name, overwrite)
    check_target(tmp_path / "new" / "deep" / "a.png", False)
    assert not (tmp_path / "new").exists()
    if os.access("/proc", os.W_OK) is False:
        with pytest.raises(ImageError, match="nothing can be written"):
            check_target(Path("/proc/a.png"), False)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """The settings that pictures were restored with; the network is left out: the answer is black."""
    settings = []

    def restore(model, x, setting, seed, tile, device, progress):
        settings.append((setting, tile))
        return torch.full_like(x, -1)

    monkeypatch.setattr("tinymsg.restoring.tiles.restore_large", restore)
    return settings


def deblur(*arguments, weights) -> int:
    return main(["deblur", *map(str, arguments), "--weights", str(weights), "--device", "cpu"])


def test_every_kind_of_file_gives_the_same_kind(tmp_path, weights, seen, capsys):
    """A folder of everything: each picture comes back in its format, depth, gray and transparency, with its profile."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for number, (channels, dtype, transparent) in enumerate(
        [(1, np.uint8, False), (3, np.uint8, True), (3, np.uint16, True), (1, np.uint16, False)]
    ):
        for suffix in ("png", "tif"):
            save_photo(folder / "sub" / f"{number}.{suffix}", photo(channels, dtype, transparent))
    for suffix in ("jpg", "webp", "avif", "bmp"):
        save_photo(folder / f"a.{suffix}", photo(metadata={}))
    Image.fromarray(pixels(3)).save(tmp_path / "b.gif")
    assert deblur(folder, tmp_path / "b.gif", "-o", out, weights=weights) == 0
    for source in [p for p in folder.rglob("*.*") if p.is_file()]:
        before, after = open_photo(source), open_photo(out / source.relative_to(folder))
        assert after.pixels.dtype == before.pixels.dtype and after.pixels.shape == before.pixels.shape
        assert same(after.alpha, before.alpha) and after.metadata.keys() == before.metadata.keys()
        hidden = np.zeros(before.pixels.shape[:2], bool) if before.alpha is None else before.alpha == 0
        assert same(after.pixels[hidden], before.pixels[hidden]) and after.pixels[~hidden].max() <= 2
    assert open_photo(out / "b.gif.png").pixels.max() == 0
    assert "13 of 13" in capsys.readouterr().out


def test_quality_is_a_setting_that_experts_can_change(tmp_path, weights, seen):
    source = save_photo(tmp_path / "a.png", photo())[0]
    for number, options in enumerate(([], ["--quality", "fast"], ["--quality", "best", "--steps", 3, "--tile", 64])):
        assert deblur(source, "-o", tmp_path / f"{number}.png", *options, weights=weights) == 0
    (default, _), (fast, _), (best, tile) = seen
    assert (default.samples, fast.samples, fast.steps, best.samples, best.steps, tile) == (1, 1, 1, 4, 3, 64)
    assert default.steps > 1


def test_the_weights_card_says_what_a_quality_means():
    card = {"setting": {"steps": 7, "samples": 2}, "quality": {"fast": {"steps": 2, "sampler": "ddim"}}}
    assert (quality_setting(card, "fast").sampler, quality_setting(card, "fast").steps) == ("ddim", 2)
    assert (quality_setting(card, "default").steps, quality_setting(card, "default").samples) == (7, 1)
    assert quality_setting(card, "best").samples == 4


def test_a_preview_is_a_sheet_and_nothing_else(tmp_path, weights, seen, capsys):
    source = save_photo(tmp_path / "a.tif", photo(3, np.uint16, transparent=True))[0]
    arguments = [source, "-o", tmp_path / "out" / "b.tif", "--preview"]
    assert deblur(*arguments, weights=weights) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b-preview.png"]
    sheet = open_photo(tmp_path / "out" / "b-preview.png")
    assert min(sheet.pixels.shape[:2]) > 1000 and sheet.metadata["icc_profile"] == SRGB
    assert len({setting for setting, _ in seen}) == 3
    assert deblur(*arguments, weights=weights) == 1 and "exists" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["tinymsg.restoring.tiles.restore_large", "tinymsg.machine.os.fsync"])
def test_ctrl_c_leaves_nothing_half_written(place, tmp_path, weights, seen, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    source = save_photo(tmp_path / "a.png", photo())[0]
    monkeypatch.setattr(place, stop)
    assert deblur(source, "-o", tmp_path / "out" / "b.png", weights=weights) == 130
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [source]
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "stopped" in said


def test_failures_before_ctrl_c_are_told(tmp_path, weights, seen, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_text("not a picture")
    save_photo(tmp_path / "in" / "1.png", photo())

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinymsg.restoring.tiles.restore_large", stop)
    assert deblur(tmp_path / "in", "-o", tmp_path / "out", weights=weights) == 130
    said = capsys.readouterr().err
    assert "0.png: not a picture" in said and "stopped" in said


def test_a_folder_goes_on_whatever_happens(tmp_path, weights, monkeypatch, capsys):
    """A full folder for temporary files costs one picture, a name that cannot be printed none."""
    for name in ("a.png", "日本.png", "z.png"):
        save_photo(tmp_path / "in" / name, photo())
    (tmp_path / "in" / "folder.png").mkdir()
    left = iter([OSError(28, "No space left on device")])

    def restore(model, x, *arguments):
        for error in left:
            raise error
        return x.float()

    monkeypatch.setattr("tinymsg.restoring.tiles.restore_large", restore)
    printed = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr("sys.stdout", printed)
    assert deblur(tmp_path / "in", "-o", tmp_path / "out", weights=weights) == 1
    printed.flush()
    assert b"2 of 3" in printed.buffer.getvalue() and len(list((tmp_path / "out").iterdir())) == 2
    assert "a.png: No space left on device in " in (said := capsys.readouterr().err) and "TMPDIR" in said


def test_what_was_written_is_no_input(tmp_path, weights, seen, capsys):
    Image.fromarray(pixels(3)).save(tmp_path / "a.gif")
    save_photo(tmp_path / "b.png", photo())
    for _ in range(2):
        deblur(tmp_path, "-o", tmp_path / "sharp", "--overwrite", weights=weights)
        assert "2 of 2" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "sharp").rglob("*")) == ["a.gif.png", "b.png"]


def test_what_appears_during_the_work_is_not_replaced(tmp_path, weights, monkeypatch, capsys):
    source, target = save_photo(tmp_path / "a.png", photo())[0], tmp_path / "b.png"

    def restore(model, x, *arguments):
        target.write_text("precious")
        return x.float()

    monkeypatch.setattr("tinymsg.restoring.tiles.restore_large", restore)
    assert deblur(source, "-o", target, weights=weights) == 0
    assert target.read_text() == "precious" and open_photo(tmp_path / "b-2.png").pixels.shape == (13, 9, 3)
    assert "b-2.png; because" in capsys.readouterr().out


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    name = "ä" * 125 + ".png"
    assert len(name.encode()) == 254
    assert save_photo(tmp_path / name, photo())[0].name == name and len(list(tmp_path.iterdir())) == 1


def test_mistakes_are_found_before_the_work(tmp_path, weights, seen, capsys):
    source = save_photo(tmp_path / "a.png", photo())[0]
    (tmp_path / "file").touch()
    for inputs, out, status, word in [
        ([source], tmp_path / "x.gif", 1, ".png, .jpg"),
        ([source], tmp_path / "file" / "x.png", 1, "nothing can be written"),
        ([tmp_path], tmp_path / "x.png", 2, "output folder"),
        ([source, source], tmp_path / "x.png", 2, "output folder"),
        ([source], tmp_path / "file", 2, "output folder"),
    ]:
        assert deblur(*inputs, "-o", out, weights=weights) == status
        said = capsys.readouterr().err
        assert word in said and "Traceback" not in said
    assert seen == [] and {p.name for p in tmp_path.iterdir()} == {"a.png", "file"}

"""Packing: the result is whole and right, or not there; and the command, as it is typed."""

import json
import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tinymsg.cli import main
from tinymsg.data import ImageError, Pair
from tinymsg.datasets import packing
from tinymsg.datasets.folders import folder_pairs
from tinymsg.datasets.layouts import find_pairs
from tinymsg.datasets.packed import PackedPairs, is_packed, open_frames, read_manifest
from tinymsg.datasets.packing import pack


@pytest.fixture
def root(tmp_path) -> Path:
    """A miniature GoPro (6 pairs to train on) and RealBlur (sizes differ), to be changed at will."""
    miniatures.make_gopro(tmp_path / "data")
    return miniatures.make_realblur(tmp_path / "data")


def gopro(root: Path) -> list[Pair]:
    return find_pairs("gopro", root, "train", complete=False)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(*arguments) -> int:
    return main(["pack", *map(str, arguments)])


# --- what is packed ---------------------------------------------------------------------------------------------


def test_pixels_are_the_pictures(root, tmp_path):
    pairs = gopro(root)
    manifest = pack(pairs, tmp_path / "out", "gopro", workers=1)
    assert sorted(content(tmp_path / "out")) == ["manifest.json", "pairs.npy"]
    frames = np.load(tmp_path / "out/pairs.npy")  # any program reads it
    assert frames.shape == (6, 2, 32, 48, 3) and frames.dtype == np.uint8
    for frame, pair in zip(frames, pairs, strict=True):
        assert np.array_equal(frame[0], np.array(Image.open(pair.sharp))) and np.array_equal(
            frame[1], np.array(Image.open(pair.blurry))
        )
    assert [row[0] for row in manifest["pairs"]] == [pair.name for pair in pairs]
    assert manifest == read_manifest(tmp_path / "out") and manifest["tinymsg"] == packing.__version__


def test_sizes_that_differ_are_padded_with_zeros(root, tmp_path):
    pairs = find_pairs("realblur_r", root, "test", complete=False)
    manifest = pack(pairs, tmp_path / "out", "realblur_r", "test", workers=1)
    frames = open_frames(tmp_path / "out", manifest["shape"])
    for frame, pair, (_, h, w, _) in zip(frames, pairs, manifest["pairs"], strict=True):
        for side, path in ((0, pair.sharp), (1, pair.blurry)):
            pixels = np.array(Image.open(path))
            assert pixels.shape == (h, w, 3) and np.array_equal(frame[side, :h, :w], pixels)
            assert not frame[side, h:].any() and not frame[side, :, w:].any()


def test_pictures_that_are_turned_gray_or_deep(tmp_path):
    """Sizes are read from headers, pixels by read_image: they must agree whatever the file is."""
    folder = tmp_path / "mine"
    pixels = miniatures.sharp_pixels(0, (12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for side in ("blur", "sharp"):
        (folder / side).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / side / "a.jpg", exif=exif)
        Image.fromarray(pixels).save(folder / side / "b.png", exif=exif)
        Image.fromarray(pixels[..., 0]).save(folder / side / "c.png")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / side / "d.png")
    manifest = pack(folder_pairs(folder), tmp_path / "out", "mine", workers=1)
    assert [row[:3] for row in manifest["pairs"]] == [["a", 12, 8], ["b", 12, 8], ["c", 8, 12], ["d", 8, 12]]
    frames = open_frames(tmp_path / "out", manifest["shape"])
    assert np.array_equal(frames[1, 0, :12, :8], np.rot90(pixels, -1))
    for gray in (frames[2], frames[3]):
        assert np.array_equal(gray[1, :8, :12], np.repeat(pixels[..., :1], 3, axis=2))


def test_workers_do_not_change_the_result(root, tmp_path):
    manifests = [pack(gopro(root), tmp_path / f"out{workers}", "gopro", workers=workers) for workers in (1, 2)]
    assert manifests[0] == manifests[1] and content(tmp_path / "out1") == content(tmp_path / "out2")


def test_pictures_that_cannot_be_packed(root, tmp_path):
    pairs, out = gopro(root), tmp_path / "out"
    with pytest.raises(ValueError, match="no pairs to pack"):
        pack([], out, "gopro")
    with pytest.raises(ValueError, match="two pairs are named GOPR0372_07_00/000047"):
        pack([pairs[0], *pairs], out, "gopro")
    with pytest.raises(ValueError, match="2 sharp frames and no one target"):
        pack([Pair("a", (pairs[0].sharp, pairs[1].sharp), pairs[0].blurry)], out, "kohler")
    whole = pairs[3].sharp.read_bytes()
    miniatures.write_picture(pairs[3].sharp, miniatures.sharp_pixels(1, (47, 32)))
    with pytest.raises(ImageError, match="000047.png: sizes of the pair differ, 32x48 and 32x47"):
        pack(pairs, out, "gopro", workers=1)
    pairs[3].sharp.write_bytes(b"<html>")
    with pytest.raises(ImageError, match="sharp/000047.png: not a picture that can be read"):
        pack(pairs, out, "gopro", workers=1)
    assert not out.exists()
    pairs[3].sharp.write_bytes(whole[: len(whole) // 2])  # the header is right, the end is missing
    for workers in (1, 2):
        with pytest.raises(ImageError, match="sharp/000047.png: damaged or unreadable"):
            pack(pairs, out, "gopro", workers=workers)
        assert not is_packed(out)
    pairs[3].sharp.write_bytes(whole)
    pack(pairs, out, "gopro", workers=1, verify=True)


# --- interruptions ----------------------------------------------------------------------------------------------


class Stop(BaseException):
    """As sudden as a kill, but in this process."""


def test_an_interrupted_pack_leaves_nothing_that_looks_whole_and_starts_again(root, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", packing._frame
    taken = []

    def stop(pair, size, shape):
        taken.append(pair.name)
        if len(taken) == 4:
            raise Stop
        return whole(pair, size, shape)

    monkeypatch.setattr(packing, "_frame", stop)
    with pytest.raises(Stop):
        pack(gopro(root), out, "gopro", workers=1)
    assert not out.exists() and not (tmp_path / "out.part").exists()  # a dead process would leave it, unread
    monkeypatch.setattr(packing, "_frame", whole)
    pack(gopro(root), out, "gopro", workers=2, verify=True)
    assert sorted(content(out)) == ["manifest.json", "pairs.npy"] and not (tmp_path / "out.part").exists()


def test_a_disk_that_loses_what_it_is_given(root, tmp_path, monkeypatch):
    whole = packing.open_frames

    def lossy(folder, shape):
        frames = whole(folder, shape)
        frames[1, 0, 0, 0] ^= 1  # in memory alone: as if it had been read so
        return frames

    monkeypatch.setattr(packing, "open_frames", lossy)
    with pytest.raises(ValueError, match="1 of 6 pairs are damaged, the first: GOPR0372_07_00/000048"):
        pack(gopro(root), tmp_path / "out", "gopro", workers=1)
    assert not is_packed(tmp_path / "out")


def test_two_at_once(root, tmp_path):
    with FileLock(tmp_path / "out.part.lock"), pytest.raises(ValueError, match="another process is packing into .*out"):
        pack(gopro(root), tmp_path / "out", "gopro", workers=1)


def test_too_little_space(root, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage._replace(free=50_000))
    with pytest.raises(ValueError, match=r"GB are needed for .*pairs.npy, 0.00 GB are free"):
        pack(gopro(root), tmp_path / "out", "gopro", workers=1)


def test_what_is_there_is_never_overwritten(root, tmp_path):
    out = tmp_path / "out"
    pack(gopro(root), out, "gopro", workers=1)
    before = content(out)
    for pairs, source, blur, message in (
        (
            find_pairs("gopro", root, "train", "blur_gamma", complete=False),
            "gopro",
            "blur_gamma",
            r"gopro train \(blur\), .* gopro train \(blur_gamma\)",
        ),
        (find_pairs("realblur_j", root, complete=False), "realblur_j", "blur", r"gopro train \(blur\), .* realblur_j"),
        (gopro(root)[:5], "gopro", "blur", "holds 6 pairs of .* these 5 pairs"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*choose another --out"):
            pack(pairs, out, source, blur=blur, workers=1)
    (tmp_path / "other").mkdir()
    pack(gopro(root), tmp_path / "other", "gopro", workers=1)  # an empty folder is no loss
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_bytes(b"precious")
    for name in ("photos", "file"):
        with pytest.raises(ValueError, match=f"{name} exists and is no packed folder"):
            pack(gopro(root), tmp_path / name, "gopro", workers=1)
    assert (
        content(out) == before
        and (tmp_path / "photos/holiday.jpg").read_bytes() == (tmp_path / "file").read_bytes() == b"precious"
    )


@pytest.mark.parametrize("damage", ["pixel", "picture", "short"])
def test_verify_compares_file_and_pictures(root, tmp_path, damage):
    pairs, out = gopro(root), tmp_path / "out"
    pack(pairs, out, "gopro", workers=1)
    pack(pairs, out, "gopro", workers=1, verify=True)
    if damage == "picture":
        miniatures.write_picture(pairs[3].sharp, miniatures.sharp_pixels(99, (48, 32)))
        message = "the pictures of GOPR0373_07_01/000047 are not those that were packed"
    else:
        bytes_ = bytearray((out / "pairs.npy").read_bytes())
        bytes_[-1] ^= 1
        (out / "pairs.npy").write_bytes(bytes_ if damage == "pixel" else bytes_[:-1])
        message = (
            "damaged, the first: GOPR0373_07_01/000049" if damage == "pixel" else "pairs.npy is missing or damaged"
        )
    with pytest.raises(ValueError, match=message):
        pack(pairs, out, "gopro", workers=1, verify=True)


# --- the command ------------------------------------------------------------------------------------------------


def test_a_data_set_by_name(root, capsys):
    assert run("gopro", "--root", root, "--workers", 1) == 2
    error = capsys.readouterr().err
    assert "6 pairs instead of 2103" in error and f"data_scripts/gopro.py --folder {root} fetches it" in error
    assert run("gopro", "--root", root, "--workers", 1, "--incomplete") == 0
    out = root / "packed/gopro-train"
    said = capsys.readouterr().out
    assert (
        said.startswith(f"{out}: 6 pairs of gopro train (blur), frames of 48x32, 0.00 GB, SHA-256 ")
        and said.count("\n") == 1
    )
    assert run("gopro", "--root", root, "--workers", 1, "--incomplete", "--verify") == 0
    assert capsys.readouterr().out == said.rstrip("\n") + ", was packed already, verified against the pictures\n"
    assert run("gopro", "--root", root, "--incomplete", "--blur", "blur_gamma") == 2
    assert f"{out} holds 6 pairs of gopro train (blur)" in capsys.readouterr().err
    assert (
        run("gopro", "--root", root, "--incomplete", "--workers", 1, "--blur", "blur_gamma", "--out", root / "gamma")
        == 0
    )
    assert json.loads((root / "gamma/manifest.json").read_text())["blur"] == "blur_gamma"
    assert run("realblur_j", "--split", "test", "--root", root, "--workers", 1, "--incomplete") == 0
    assert len(PackedPairs(root / "packed/realblur_j-test")) == 4


def test_a_folder_of_ones_own(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side in ("input", "target"):
        for i in range(3):
            miniatures.write_picture(tmp_path / "mine" / side / f"{i}.png", miniatures.sharp_pixels(i, (20, 16)))
    (tmp_path / "mine/input/._0.png").write_bytes(b"left by a Mac: no picture")
    assert run("mine", "--workers", 1) == 0
    assert run(tmp_path / "mine/", "--workers", 1) == 0  # by another name for the same folder
    assert "data/packed/mine-train: 3 pairs of mine train" in capsys.readouterr().out
    assert PackedPairs("data/packed/mine-train").names == ["0", "1", "2"]
    assert run("data/packed/mine-train") == 0 and "packed already" in capsys.readouterr().out
    shutil.rmtree("mine")  # the pictures are not needed any more
    assert run("data/packed/mine-train", "--verify") == 0 and "every checksum is right" in capsys.readouterr().out
    Path("data/packed/mine-train/pairs.npy").write_bytes(
        Path("data/packed/mine-train/pairs.npy").read_bytes()[:-1] + b"!"
    )
    assert run("data/packed/mine-train", "--verify") == 2 and "1 of 3 pairs are damaged" in capsys.readouterr().err


def test_mistakes_are_one_sentence(root, tmp_path, capsys, monkeypatch):
    for arguments, message in (
        (["nowhere"], "nowhere is neither a data set (gopro, hide,"),
        (["bsds500"], "bsds500 is neither a data set"),
        ([str(root / "packed")], "is neither a data set"),
        ([str(root / "GOPRO_Large/train/GOPR0372_07_00/sharp")], "no pairs below"),
        (["reds", "--root", str(root)], "REDS has no split 'train'; it has test, val"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_frame", full)
    assert run("gopro", "--root", root, "--workers", 1, "--incomplete") == 2
    assert "No space left on device" in capsys.readouterr().err

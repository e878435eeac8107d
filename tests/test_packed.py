"""Packed pairs: what comes out of the file is what the pictures show, however it is read."""

import json
import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from gpu_cases import no_waiting

from tinymsg.data import Batches, ImageError, read_image, to_model
from tinymsg.datasets import packed
from tinymsg.datasets.folders import ListedPairs, PairedImages
from tinymsg.datasets.layouts import find_pairs
from tinymsg.datasets.packed import PackedPairs, open_pairs, packed_folder, read_manifest
from tinymsg.datasets.packing import pack
from tinymsg.training.estimate import CARDS, CONTEXT, SPARE, what_fits
from tinymsg.training.profiles import profile

MODES = [False, True]  # from the file; from memory


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Miniature GoPro and RealBlur, and their packed forms where training looks for them. Not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    miniatures.make_gopro(folder)
    miniatures.make_realblur(folder)
    for name, split in (("gopro", "train"), ("realblur_j", "test")):
        pack(
            find_pairs(name, folder, split, complete=False), packed_folder(name, split, folder), name, split, workers=1
        )
    return folder


@pytest.fixture
def folder(root, tmp_path) -> Path:
    """A packed GoPro of one's own, to be damaged."""
    return Path(shutil.copytree(packed_folder("gopro", "train", root), tmp_path / "packed"))


def pictures(root: Path, name: str, split: str) -> list[torch.Tensor]:
    """Each pair, straight from its files: (2, 3, h, w) in [-1, 1]."""
    pairs = find_pairs(name, root, split, complete=False)
    return [to_model(torch.stack([read_image(pair.sharp), read_image(pair.blurry)])) for pair in pairs]


def all_crops(sources: list[torch.Tensor], size: int) -> dict[bytes, list[tuple[int, int, int, int]]]:
    """Every cut of every picture, turned by quarters and then mirrored, to the bit -> [(picture, top, left, turn)]."""
    places = {}
    for i, source in enumerate(sources):
        for top in range(source.shape[-2] - size + 1):
            for left in range(source.shape[-1] - size + 1):
                cut = source.numpy()[..., top : top + size, left : left + size]
                for turn in range(8):
                    crop = np.rot90(cut, turn % 4, axes=(-2, -1))
                    places.setdefault((crop[..., ::-1] if turn >= 4 else crop).tobytes(), []).append(
                        (i, top, left, turn)
                    )
    return places


@pytest.mark.parametrize("resident", MODES)
@pytest.mark.parametrize(("name", "split"), [("gopro", "train"), ("realblur_j", "test")])
def test_crops_are_cut_from_the_pictures_and_turned_together(root, device, name, split, resident):
    pairs = PackedPairs(packed_folder(name, split, root), seed=3, device=device, resident=resident)
    assert pairs.resident == resident
    size, count = 26, 60
    y0, x = pairs.crops(torch.arange(count), size)
    assert y0.shape == x.shape == (count, 3, size, size) and y0.dtype == x.dtype == torch.float32
    assert y0.device.type == x.device.type == device.type
    for image in (y0, x):
        assert image.is_contiguous(memory_format=torch.channels_last)  # as training wants it: no copy is made there
    sources = pictures(root, name, split)
    places = all_crops(sources, size)
    found = [places[crop.tobytes()] for crop in torch.stack((y0, x), dim=1).cpu().numpy()]
    assert all(
        len(origin) == 1 for origin in found
    )  # exactly one place: both are of the same pair, cut and turned alike
    which, top, left, turn = (set(values) for values in zip(*(origin[0] for origin in found), strict=True))
    assert which == set(range(len(sources))) and turn == set(range(8))
    assert min(top) == 0 and len(top) > 3 and len(left) > 8
    if name == "gopro":
        assert max(top) == 32 - size and max(left) > 48 - size - 3


def test_the_crops_are_those_of_the_pictures_themselves(root):
    index = torch.arange(30)
    for name, split in (("gopro", "train"), ("realblur_j", "test")):
        listed = ListedPairs(find_pairs(name, root, split, complete=False), name, seed=3)
        packed_pairs = PackedPairs(packed_folder(name, split, root), seed=3)
        for one, other in zip(listed.crops(index, 26), packed_pairs.crops(index, 26), strict=True):
            assert torch.equal(one, other)
        places = all_crops(pictures(root, name, split), 26)
        found = [places[crop.tobytes()][0][0] for crop in torch.stack(listed.crops(index, 26), dim=1).numpy()]
        assert found == listed.pictures(index).tolist()


def test_padding_is_never_cut(root):
    pairs = PackedPairs(packed_folder("realblur_j", "test", root))
    sizes = {(h, w) for _, h, w, _ in pairs.manifest["pairs"]}
    assert sizes == {(43, 42), (42, 44)} and pairs.manifest["shape"] == [4, 2, 43, 44, 3]  # neither fills its frame
    places = all_crops(pictures(root, "realblur_j", "test"), 42)
    for resident in MODES:
        pair = PackedPairs(pairs.folder, resident=resident).crops(torch.arange(60), 42)  # as large as it may be
        origin = [places[crop.tobytes()][0] for crop in torch.stack(pair, dim=1).numpy()]
        assert {(top, left) for _, top, left, _ in origin} == {(0, 0), (1, 0), (0, 1), (0, 2)}
    with pytest.raises(ImageError, match="scene002/1 of .* 43x42 is smaller than the crop of 43"):
        pairs.crops(torch.arange(1), 43)


@pytest.mark.parametrize("i", [0, 5])
def test_whole_images(root, device, i):
    pairs = PackedPairs(packed_folder("gopro", "train", root), device=device)
    raw = PairedImages(root / "GOPRO_Large/train", device=device)
    for image, expected in zip(pairs.image(i), raw.image(i), strict=True):
        assert image.device.type == device.type and torch.equal(image, expected)
    assert pairs.names[5] == "GOPR0373_07_01/000049" and len(pairs) == len(raw) == 6
    assert pairs.name == "6 packed pairs of gopro train (blur)"
    varied = PackedPairs(packed_folder("realblur_j", "test", root), device=device)
    assert [tuple(varied.image(i)[0].shape) for i in (0, 3)] == [(1, 3, 43, 42), (1, 3, 42, 44)]
    assert torch.equal(torch.cat(varied.image(3)).cpu(), pictures(root, "realblur_j", "test")[3])


def test_file_and_memory_and_devices_agree_to_the_bit(root, device):
    packed_pairs = packed_folder("realblur_j", "test", root)
    index = torch.tensor([0, 5, 10**12, 7, 5])
    expected = PackedPairs(packed_pairs, seed=1).crops(index, 24)
    for resident in MODES:
        pairs = PackedPairs(packed_pairs, seed=1, device=device, resident=resident)
        for image, wanted in zip(pairs.crops(index, 24), expected, strict=True):
            assert torch.equal(image.cpu(), wanted)
    assert torch.equal(expected[0][1], expected[0][4])


@pytest.mark.parametrize("resident", MODES)
def test_a_crop_depends_on_seed_and_index_alone(root, device, resident):
    pairs = PackedPairs(packed_folder("gopro", "train", root), seed=4, device=device, resident=resident)
    whole = Batches(pairs, batch=6, size=20)(2)
    shares = [Batches(pairs, batch=6, size=20, rank=rank, processes=3)(2) for rank in range(3)]
    for side in range(2):
        assert torch.equal(torch.stack([share[side] for share in shares], dim=1).flatten(0, 1), whole[side])
        assert torch.equal(pairs.crops(torch.arange(17, 11, -1), 20)[side].flip(0), whole[side])
    other = PackedPairs(pairs.folder, seed=5, device=device, resident=resident).crops(torch.arange(12, 18), 20)
    assert not torch.equal(other[0], whole[0])


def test_places_are_uniform(root):
    plan = PackedPairs(packed_folder("gopro", "train", root))._plan(torch.arange(24_000), 20)
    for column, values in zip(plan.T, (6, 32 - 20 + 1, 48 - 20 + 1, 8), strict=True):
        counts = torch.bincount(column)
        assert len(counts) == values and (counts - 24_000 / values).abs().max() < 5 * (24_000 / values) ** 0.5


def test_more_bytes_than_32_bits_count(tmp_path, monkeypatch):
    """As of the real GoPro; the file has holes, so that this costs nothing."""
    n, h, w = 400, 720, 1280
    manifest = {"format": packed.FORMAT, "source": "x", "split": "train", "blur": "blur", "shape": [n, 2, h, w, 3]}
    manifest["pairs"] = [[f"{i}", h, w, ""] for i in range(n)]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"identity": packed.identity(manifest)}))
    frames = np.lib.format.open_memmap(tmp_path / "pairs.npy", mode="w+", dtype=np.uint8, shape=(n, 2, h, w, 3))
    assert frames.nbytes > 2**31
    last = torch.arange(2 * h * w * 3).view(2, h, w, 3).remainder(251).byte()
    frames[-1] = last.numpy()
    monkeypatch.setattr(PackedPairs, "_plan", lambda self, index, size: torch.tensor([[n - 1, h - size, w - size, 5]]))
    expected = to_model(last[:, -64:, -64:].permute(0, 3, 1, 2).float() / 255).rot90(1, (2, 3)).flip(3)
    pairs = PackedPairs(tmp_path)
    assert torch.equal(torch.cat(pairs.crops(torch.tensor([0]), 64)), expected)
    assert torch.equal(torch.cat(pairs.image(n - 1))[0, 0, -1], to_model(last[0, -1, :, 0].float() / 255))


def test_the_file_is_never_changed(folder):
    before = (folder / "pairs.npy").read_bytes()
    pairs = PackedPairs(folder)
    pairs._pixels.zero_()
    assert (folder / "pairs.npy").read_bytes() == before and (pairs.image(0)[0] == -1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_resident_where_it_fits(root, monkeypatch):
    """Asked of the GPU: at most a quarter of what is free."""
    folder = packed_folder("gopro", "train", root)
    nbytes = PackedPairs(folder)._pixels.nbytes
    for free, fits in ((4 * nbytes, True), (4 * nbytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * nbytes))
        assert PackedPairs(folder, device="cuda").resident is fits


def test_resident_pairs_leave_room_for_the_training():
    """GoPro's, and what the full profile is said to take on each card: where they are held, both fit."""
    pairs = 2103 * 2 * 720 * 1280 * 3
    held = []
    for card in CARDS:
        if pairs <= packed.GPU_SHARE * (card * 1e9 - CONTEXT):
            held.append(card)
            assert pairs + what_fits(profile("full"), card)[1] <= card * 1e9 * (1 - SPARE)
    assert held == [80]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_crops_do_not_wait_for_the_gpu(root):
    pairs = PackedPairs(packed_folder("gopro", "train", root), device="cuda", resident=True)
    pairs.crops(torch.arange(4), 16)
    with no_waiting():
        pairs.crops(torch.arange(4, 8), 16)


# --- damage -----------------------------------------------------------------------------------------------------


def edit(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("pairs.npy", lambda b: b[:-1], "pairs.npy is missing or damaged"),
        ("pairs.npy", lambda b: b[:50], "pairs.npy is missing or damaged"),
        ("pairs.npy", lambda b: b"", "pairs.npy is missing or damaged"),
        ("pairs.npy", lambda b: b"<html>" + b[6:], "pairs.npy is missing or damaged"),
        (
            "pairs.npy",
            lambda b: b.replace(b"(6, 2, 32, 48, 3)", b"(6, 2, 48, 32, 3)"),
            r"holds uint8 \(6, 2, 48, 32, 3\)",
        ),
        ("pairs.npy", lambda b: b.replace(b"'|u1'", b"'|i1'"), "holds int8"),
        ("manifest.json", lambda b: b[:-20], "manifest.json is damaged"),
        ("manifest.json", lambda b: b"[]", "manifest.json is damaged"),
        ("manifest.json", lambda b: b"\xff" + b, "manifest.json is damaged"),
        ("manifest.json", lambda b: b.replace(b'"blur": "blur"', b'"blur": "blur_gamma"'), "damaged or was edited"),
        ("manifest.json", lambda b: b.replace(b"version 1", b"version 2"), "is of format 'tinymsg pairs, version 2'"),
    ],
)
def test_damage_is_found_at_opening(folder, file, change, message):
    PackedPairs(folder)
    before = (folder / file).read_bytes()
    edit(folder / file, change)
    assert (folder / file).read_bytes() != before
    with pytest.raises(ValueError, match=message) as error:
        PackedPairs(folder)
    assert "pack again" in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["pairs.npy", "manifest.json"])
def test_missing_files(folder, file):
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"{folder}(/{file} is missing| holds no packed pairs: there is no {file})"):
        PackedPairs(folder)


def test_a_changed_pixel_is_found_by_verifying(folder):
    assert len(PackedPairs(folder, verify=True)) == 6
    edit(folder / "pairs.npy", lambda b: b[:-1] + bytes([b[-1] ^ 1]))
    assert len(PackedPairs(folder)) == 6  # not looked for
    with pytest.raises(ValueError, match="1 of 6 pairs are damaged, the first: GOPR0373_07_01/000049"):
        PackedPairs(folder, verify=True)


# --- by any name ------------------------------------------------------------------------------------------------


def test_open_by_name_prefers_the_packed_form(root, device):
    pairs = open_pairs("gopro", seed=9, device=device, root=root)
    assert isinstance(pairs, PackedPairs) and pairs.seed == 9 and pairs.device == device
    raw = open_pairs("gopro", "test", seed=9, device=device, root=root, complete=False)
    assert (
        isinstance(raw, ListedPairs)
        and raw.name == "3 pairs of gopro test (blur)"
        and raw.names[0] == "GOPR0384_07_00/000047"
    )
    y0, x = raw.crops(torch.arange(3), 16)
    assert y0.shape == x.shape == (3, 3, 16, 16) and y0.device.type == device.type
    folder = PairedImages(root / "GOPRO_Large/test", seed=9, device=device)
    assert torch.equal(folder.crops(torch.arange(3), 16)[1], x)
    with pytest.raises(ValueError, match="3 pairs instead of 1111"):
        open_pairs("gopro", "test", root=root)


def test_open_never_takes_the_other_blur(root):
    with pytest.raises(ValueError, match="gopro-train holds blur blur, not blur_gamma"):
        open_pairs("gopro", "train", "blur_gamma", root=root)
    assert "blur_gamma" in open_pairs("gopro", "test", "blur_gamma", root=root, complete=False).name


def test_open_a_moved_pack_is_noticed(root, tmp_path):
    shutil.copytree(packed_folder("gopro", "train", root), packed_folder("gopro", "test", tmp_path))
    with pytest.raises(ValueError, match="holds split train, not test"):
        open_pairs("gopro", "test", root=tmp_path)


def test_open_folders(root, folder):
    assert isinstance(open_pairs(folder), PackedPairs)
    raw = open_pairs(str(root / "GOPRO_Large/train"), blur="blur_gamma")
    assert type(raw) is PairedImages and "blur_gamma" in raw.name
    with pytest.raises(ValueError, match="'?gorpo'? is neither a data set .gopro, hide, .* nor a folder"):
        open_pairs("gorpo")


def test_koehler_has_no_one_target(tmp_path):
    miniatures.make_kohler(tmp_path, size=(8, 8))
    with pytest.raises(ValueError, match="Blurry1_1.png has 3 sharp frames and no one target"):
        open_pairs("kohler", "test", root=tmp_path, complete=False)


def test_the_manifest_says_what_it_is(root):
    manifest = read_manifest(packed_folder("realblur_j", "test", root))
    assert json.loads(json.dumps(manifest)) == manifest
    assert (manifest["source"], manifest["split"], manifest["blur"]) == ("realblur_j", "test", "blur")
    assert [pair[:3] for pair in manifest["pairs"]] == [
        ["scene002/1", 43, 42],
        ["scene002/2", 43, 42],
        ["scene003/1", 42, 44],
        ["scene003/2", 42, 44],
    ]

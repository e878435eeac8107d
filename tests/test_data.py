import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinymsg import data
from tinymsg.blur import Camera, Motion
from tinymsg.data import (
    DOMAINS,
    PHOTOS,
    TEST_DOMAINS,
    Batches,
    Contents,
    Domain,
    ImageError,
    Pair,
    SyntheticPairs,
    folder_contents,
    make_contents,
    pad_to_multiple,
    photo,
    picture_files,
    read_image,
    scene_contents,
    to_display,
    to_model,
    write_image,
)
from tinymsg.evaluate import domain_pairs
from tinymsg.rng import Draws


def pixels(h: int = 6, w: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


# --- reading pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_colour_files_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    read = read_image(path)
    assert read.dtype == torch.float32 and read.shape == (3, 6, 9)
    assert torch.equal(read, as_tensor(pixels()))
    assert torch.equal(read_image(str(path)), read)


def test_gray_of_8_and_16_bits(tmp_path):
    gray = pixels()[..., 0]
    Image.fromarray(gray).save(tmp_path / "8.png")
    expected = (torch.from_numpy(gray.copy()).float() / 255).expand(3, -1, -1)
    assert torch.equal(read_image(tmp_path / "8.png"), expected)
    deep = gray.astype(np.uint16) * 257
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"16.{suffix}")
        torch.testing.assert_close(read_image(tmp_path / f"16.{suffix}"), expected, rtol=0, atol=1e-6)
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "dark.png")  # 16 bits, though all below 256
    assert read_image(tmp_path / "dark.png").max() < 0.01
    for scale in (1 / 255, 1.0, 257.0):  # floating point, up to 1, 255 or 65535
        Image.fromarray(gray.astype(np.float32) * np.float32(scale)).save(tmp_path / "float.tif")
        torch.testing.assert_close(read_image(tmp_path / "float.tif"), expected, rtol=0, atol=1e-5)


def test_one_bit_and_palette(tmp_path):
    Image.fromarray(pixels()[..., 0] > 127).save(tmp_path / "1.png")
    assert set(read_image(tmp_path / "1.png").unique().tolist()) == {0.0, 1.0}
    image = Image.fromarray(pixels()).quantize(16)
    image.save(tmp_path / "p.png")
    assert torch.equal(read_image(tmp_path / "p.png"), as_tensor(np.array(image.convert("RGB"))))


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.dstack([pixels(), np.zeros((6, 9), np.uint8)])
    rgba[:3, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert torch.equal(read[:, :3], as_tensor(rgba[:3, :, :3])) and (read[:, 3:] == 1).all()
    Image.fromarray(rgba).convert("LA").save(tmp_path / "la.png")
    assert (read_image(tmp_path / "la.png")[:, 3:] == 1).all()
    palette = Image.fromarray(pixels()).quantize(8)
    palette.save(tmp_path / "p.png", transparency=3)
    hidden = torch.from_numpy(np.array(palette) == 3)
    assert hidden.any() and (read_image(tmp_path / "p.png")[:, hidden] == 1).all()


def test_cmyk(tmp_path):
    plate = np.zeros((8, 8, 4), np.uint8)
    plate[..., 0] = 255  # full cyan: red is absorbed
    Image.fromarray(plate, mode="CMYK").save(tmp_path / "a.tif")
    assert torch.equal(read_image(tmp_path / "a.tif")[:, 0, 0], torch.tensor([0.0, 1.0, 1.0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = pixels(8, 16)
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png"), as_tensor(upright))


def test_one_pixel(tmp_path):
    Image.fromarray(pixels(1, 1)).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), as_tensor(pixels(1, 1)))


def one_sentence(path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and caught.value.__suppress_context__
    return message


def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    assert "no such file" in one_sentence(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("not a picture at all")
    assert "not a picture" in one_sentence(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    assert "not a picture" in one_sentence(tmp_path / "empty.png")
    (tmp_path / "folder.png").mkdir()
    assert "unreadable" in one_sentence(tmp_path / "folder.png")
    Image.fromarray(pixels(20, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr(data, "MAX_PIXELS", 399)
    with pytest.raises(ImageError, match="20x20"):
        read_image(tmp_path / "large.png")
    monkeypatch.setattr(data, "MAX_PIXELS", 400)
    assert read_image(tmp_path / "large.png").shape == (3, 20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL's own guard against huge files
    assert "too large" in one_sentence(tmp_path / "large.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_truncated_and_damaged_files(tmp_path, suffix):
    """Cut anywhere or scrambled, a file gives a picture of the right shape or one ImageError: nothing else."""
    Image.fromarray(pixels(40, 40)).save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    broken = tmp_path / f"b.{suffix}"
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(40):
        damaged = bytearray(whole)
        if trial < 20:
            damaged = damaged[: len(whole) * trial // 21]
        else:
            for place in rng.integers(0, len(whole), 8):
                damaged[place] = rng.integers(0, 256)
        broken.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of broken metadata
                assert read_image(broken).ndim == 3
        except ImageError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused >= 18


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_written_pictures_come_back(tmp_path, suffix):
    display = as_tensor(pixels(16, 24)) * 0 + 0.5
    display[:, 4:8] = 0.25
    write_image(tmp_path / "new" / f"a.{suffix}", display)
    assert (read_image(tmp_path / "new" / f"a.{suffix}") - display).abs().mean() < 0.02
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"a.{suffix}"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ImageError, match="could not be written"):
        write_image(tmp_path / "a.unknown", torch.zeros(3, 4, 4))
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="could not be written"):
        write_image(tmp_path / "file" / "a.png", torch.zeros(3, 4, 4))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ranges():
    display = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(to_model(display), torch.tensor([-1.0, -0.5, 1.0]))
    assert torch.equal(to_display(to_model(display)), display)
    assert torch.equal(to_display(torch.tensor([-1.5, 1.5])), torch.tensor([0.0, 1.0]))


# --- sharp pictures ---------------------------------------------------------------------------------------------


def test_crops_are_pieces_of_their_picture_in_eight_poses():
    picture = torch.arange(3 * 12 * 10).reshape(3, 12, 10).clamp(max=255).to(torch.uint8)
    picture[1] = torch.arange(120).reshape(12, 10)
    crops = (Contents([picture], "one").crops(Draws(0, torch.arange(400)), 6) * 255).round().to(torch.uint8)
    poses = [torch.rot90(p, k, (1, 2)) for p in (picture, picture.flip(2)) for k in range(4)]
    windows = {
        p[:, i : i + 6, j : j + 6].numpy().tobytes(): (n, i, j)
        for n, p in enumerate(poses)
        for i in range(p.shape[1] - 5)
        for j in range(p.shape[2] - 5)
    }
    found = [windows[crop.contiguous().numpy().tobytes()] for crop in crops]  # KeyError: not a piece of the picture
    assert {pose for pose, _, _ in found} == set(range(8))
    assert len(set(found)) > 200  # of 8 poses x 7 x 5 places, also those at the far border
    assert {i for pose, i, _ in found if pose == 0} >= {0, 6} and {j for pose, _, j in found if pose == 0} >= {0, 4}


def test_small_pictures_are_mirrored_outwards():
    picture = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    crops = Contents([picture], "small").crops(Draws(0, torch.arange(8)), 12)
    assert crops.shape == (8, 3, 12, 12)
    assert set((crops * 255).round().byte().flatten().tolist()) == set(range(60))
    assert Contents([torch.zeros(3, 1, 1, dtype=torch.uint8)], "dot").crops(Draws(0, torch.arange(1)), 9).shape == (
        1,
        3,
        9,
        9,
    )


def test_pictures_of_equal_and_of_different_sizes_are_all_used():
    pictures = [torch.full((3, 8, 8), v, dtype=torch.uint8) for v in (10, 20, 30)]
    for extra in ([], [torch.full((3, 9, 20), 40, dtype=torch.uint8)]):
        contents = Contents(pictures + extra, "some")
        crops = contents.crops(Draws(0, torch.arange(60)), 8)
        assert len((crops[:, 0, 0, 0] * 255).round().unique()) == len(contents) == 3 + len(extra)
    with pytest.raises(ValueError, match="nothing"):
        Contents([], "nothing")


def test_scene_contents_are_the_scenes():
    contents = scene_contents(5, seed=3, size=16)
    assert len(contents) == 5 and contents is scene_contents(5, seed=3, size=16)
    expected = (data.render_scenes(torch.arange(5), 16, 3) * 255).round()
    assert torch.equal(torch.stack(contents.images).float(), expected)


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_are_colour_pictures(name):
    picture = photo(name)
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3 and min(picture.shape[1:]) >= 300
    assert picture.float().std() > 20


@pytest.mark.parametrize("name", ["scenes", "photos"])
def test_contents_contract(name):
    contents = make_contents(name, 4, 0)
    crops = contents.crops(Draws(0, torch.arange(3)), 24)
    assert crops.shape == (3, 3, 24, 24) and crops.min() >= 0 and crops.max() <= 1 and crops.std() > 0.01
    assert contents.name


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="paintings.*scenes, photos"):
        make_contents("paintings", 1, 0)
    with pytest.raises(ValueError, match="dog.*astronaut"):
        photo("dog")
    with pytest.raises(ValueError, match="rain.*gopro_like"):
        SyntheticPairs(scene_contents(8), "rain")


def test_a_folder_of_pictures_is_content(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(("b.png", "a.PNG", "sub/c.bmp")):
        Image.fromarray(pixels(10, 12, seed=i)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    contents = make_contents(str(tmp_path), 99, 0)
    assert torch.equal(
        torch.stack(contents.images),
        torch.stack([torch.from_numpy(pixels(10, 12, seed=i)).permute(2, 0, 1) for i in (1, 0, 2)]),
    )
    with pytest.raises(ValueError, match="no pictures"):
        folder_contents(str(tmp_path / "nowhere"))


def test_picture_files_are_sorted_and_what_a_mac_leaves_is_none(tmp_path):
    (tmp_path / "sub.folder").mkdir()
    Image.fromarray(pixels(10, 12)).save(tmp_path / "a.png")
    for name in ("._a.png", "sub.folder/._c.bmp", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"no picture")
    assert picture_files(tmp_path) == [tmp_path / "a.png"] and len(make_contents(str(tmp_path), 1, 0)) == 1
    for name in ("sub.folder/c.bmp", "B.TIFF"):
        (tmp_path / name).touch()
    assert picture_files(str(tmp_path)) == [tmp_path / "B.TIFF", tmp_path / "a.png"]
    assert picture_files(tmp_path, recursive=True) == [
        tmp_path / name for name in ("B.TIFF", "a.png", "sub.folder/c.bmp")
    ]


def test_natural_photographs_as_content(bsds500, tmp_path):
    for path in sorted((bsds500 / "train").iterdir())[:3]:
        (tmp_path / path.name).symlink_to(path)
    y0, x = SyntheticPairs(folder_contents(str(tmp_path)), "gopro_like").crops(torch.arange(4), 32)
    assert y0.shape == (4, 3, 32, 32) and 0.001 < (y0 - x).abs().mean() < 0.3


# --- pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOMAINS)
def test_pairs_of_every_domain(name, device):
    contents = scene_contents(8)
    pairs = SyntheticPairs(contents, name, seed=2, device=device)
    index = torch.tensor([3, 10**12, 0, 3])
    y0, x = pairs.crops(index, 24)
    assert y0.shape == x.shape == (4, 3, 24, 24) and y0.device.type == x.device.type == device.type
    assert y0.dtype == x.dtype == torch.float32
    for image in (y0, x):
        assert image.min() >= -1 and image.max() <= 1
        levels = (image + 1) * 127.5
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)  # eight bits
    assert torch.equal(x[0], x[3]) and not torch.equal(x[0], x[1])
    assert (y0 - x).abs().mean() > 0.003
    assert name in pairs.name and contents.name in pairs.name and "seed 2" in pairs.name
    # Alone, in another order, and on the CPU: the same pair but for rounding to 8 bits
    for index_2, device_2 in ((index[1:2], device), (index.flip(0), device), (index, torch.device("cpu"))):
        other = SyntheticPairs(contents, name, seed=2, device=device_2).crops(index_2, 24)
        for image, again in zip((y0, x), other, strict=True):
            image = torch.stack([image[index.tolist().index(i)] for i in index_2.tolist()]).cpu()
            different = (image - again.cpu()).abs()
            assert different.mean() < 1e-4
            if "jpeg" not in name and name != "all":  # where a rounded coefficient moves a block
                assert different.max() < 2.01 / 255 * (1 if device.type == "cpu" else 4)


def test_domains_differ_in_what_they_say():
    index = torch.arange(24)
    contents = scene_contents(8)
    pairs = {name: SyntheticPairs(contents, name).crops(index, 32) for name in DOMAINS}
    error = {name: (y0 - x).square().mean().item() for name, (y0, x) in pairs.items()}
    assert error["camera_shake"] > 1.3 * error["gopro_like"]
    assert error["noise"] > error["gopro_like"] and error["jpeg"] > error["gopro_like"]
    assert pairs["saturated_night"][0].mean() < pairs["gopro_like"][0].mean() - 0.1
    assert set(TEST_DOMAINS) < set(DOMAINS) and "gopro_like" not in TEST_DOMAINS


def test_the_seed_and_the_size_matter_and_gray_is_green():
    contents = scene_contents(8)
    index = torch.arange(3)
    y0, x = SyntheticPairs(contents, "gopro_like").crops(index, 24)
    assert not torch.equal(SyntheticPairs(contents, "gopro_like", seed=1).crops(index, 24)[1], x)
    gray = SyntheticPairs(contents, "gopro_like", gray=True).crops(index, 24)
    assert torch.equal(gray[0], y0[:, 1:2]) and torch.equal(gray[1], x[:, 1:2])


def test_no_light_is_missing_at_the_borders():
    """The crop's border is blurred with what lay outside of it: a bright frame shines in."""
    picture = torch.zeros(3, 40, 40, dtype=torch.uint8)
    picture[:, :, :8] = 255
    domain = Domain(Motion("linear", length=(9.0, 9.0), angle=0.0), Camera("none"))
    y0, x = SyntheticPairs(Contents([picture], "edge"), domain).crops(torch.arange(200), 24)
    dark = (y0 == -1).flatten(1).all(dim=1)
    assert dark.any() and (x[dark].amax(dim=(1, 2, 3)) > -0.9).any()


@pytest.mark.parametrize("name", ["gopro_like", "saturated_night", "everyday"])
def test_it_is_known_which_picture_a_crop_is_of(name):
    values = [30, 120, 220]
    contents = Contents([torch.full((3, 400, 400), value, dtype=torch.uint8) for value in values], "flat")
    pairs, index = SyntheticPairs(contents, name, seed=5), torch.arange(40)
    y0, _ = pairs.crops(index, 16)
    which = pairs.pictures(index)
    means = [to_display(y0[which == i]).mean(dim=(1, 2, 3)) for i in range(3)]
    assert means[0].max() < means[1].min() and means[1].max() < means[2].min(), "other light, but in the same order"


def test_one_kernel_domains_use_one_kernel():
    contents = scene_contents(8)
    motion = DOMAINS["one_kernel"].motion
    poses = motion.draw(Draws(0, torch.arange(50)))
    assert (poses - poses[:1]).abs().max() == 0
    y0, x = SyntheticPairs(contents, "one_kernel").crops(torch.arange(2), 24)
    assert (y0 - x).abs().mean() > 0.003


def test_batches_are_a_function_of_the_step():
    batches = Batches(SyntheticPairs(scene_contents(8), "gopro_like"), batch=3, size=16)
    y0, x = batches(2)
    expected = batches.pairs.crops(torch.tensor([6, 7, 8]), 16)
    assert torch.equal(y0, expected[0]) and torch.equal(x, expected[1])


def test_processes_share_a_batch():
    pairs = SyntheticPairs(scene_contents(8), "gopro_like")
    whole = Batches(pairs, batch=6, size=16)(2)
    for rank in range(3):
        part = Batches(pairs, 6, 16, rank, processes=3)(2)
        assert all(torch.equal(mine, all_of_it[rank::3]) for mine, all_of_it in zip(part, whole, strict=True))


def test_a_pair_has_one_sharp_picture_or_several():
    one, two = Path("a.png"), Path("b.png")
    assert Pair("x", one, two).sharp_paths == (one,) and Pair("x", (one, two), two).sharp_paths == (one, two)


def test_new_content_is_of_another_kind_than_the_training(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    names = {
        content: domain_pairs("new_content", content, 2, 1).name for content in ("scenes", "photos", str(tmp_path))
    }
    assert "photos" in names["scenes"] and "scenes" in names["photos"] and "scenes" in names[str(tmp_path)]
    assert "1 pictures of" in domain_pairs("jpeg", str(tmp_path), 2, 1).name


def test_the_network_sees_mirrored_padding():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 4)  # two rows more than can be mirrored: the last one repeats
    assert torch.equal(padded[0, 0, 0], torch.tensor([0.0, 1, 2, 2]))
    mirrored = pad_to_multiple(torch.arange(5.0).expand(1, 1, 7, 5), 4)
    assert torch.equal(mirrored[0, 0, 0], torch.tensor([0.0, 1, 2, 3, 4, 3, 2, 1])) and mirrored.shape[-2:] == (8, 8)
    same = torch.zeros(1, 1, 8, 16)
    assert pad_to_multiple(same, 8) is same
    assert pad_to_multiple(torch.zeros(1, 1, 1, 13), 8, dims=1).shape == (1, 1, 1, 16)

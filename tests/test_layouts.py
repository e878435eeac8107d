"""The paper's data sets, in miniature: every layout, every quirk, and what is said of what is missing."""

import dataclasses
import re
import shutil
from pathlib import Path

import miniatures
import pytest
import torch

from tinymsg.data import read_image
from tinymsg.datasets.layouts import DATASETS, REALBLUR, find_pairs, get_dataset

MADE = {
    "gopro": 3,
    "hide": 4,
    "realblur_j": 4,
    "realblur_r": 4,
    "reds": 20,
    "reds_val300": 2,
    "kohler": 48,
    "levin": 32,
}
REALBLUR_LIST = "RealBlur/RealBlur_{}_test_list.txt"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """All miniatures in one folder, as the data scripts leave them. Not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    for make in miniatures.MINIATURES.values():
        make(folder)
    return folder


@pytest.fixture
def counted(monkeypatch):
    """counted(name, split, n): pretend that the set was published with n pairs (and short exposures)."""

    def change(name: str, split: str, count: int) -> None:
        frames = range(1, 4) if DATASETS[name].frames else None
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], counts={split: count}, frames=frames))

    return change


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def says(*parts: str) -> str:
    """A pattern: all of these, in this order, in one sentence."""
    return ".*".join(re.escape(part) for part in parts)


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_is_found_complete_and_matched(made, counted, name):
    counted(name, "test", MADE[name])
    pairs = find_pairs(name, made)
    assert len(pairs) == MADE[name] == len({pair.name for pair in pairs}) == len({pair.blurry for pair in pairs})
    assert [pair.name for pair in pairs] == sorted(pair.name for pair in pairs)
    for pair in (pairs[0], pairs[-1]):  # a miniature's blurry picture is nearer to its own sharp one than to any other
        x = read_image(pair.blurry)
        distance = {
            other.name: (read_image(other.sharp_paths[len(other.sharp_paths) // 2]) - x).abs().mean()
            for other in pairs
            if read_image(other.sharp_paths[0]).shape == x.shape
        }
        nearest = min(distance, key=distance.get)
        assert distance[pair.name] == distance[nearest]  # Koehler, Levin: a picture has several blurs


@pytest.mark.parametrize("name", DATASETS)
def test_the_real_counts_are_insisted_on(made, name):
    known = get_dataset(name)
    if name == "levin":
        assert len(find_pairs(name, made)) == 32
        return
    wanted = (
        "sharp frames instead of 198 to 200"
        if name == "kohler"
        else f"{MADE[name]} pairs instead of {known.counts['test']}"
    )
    with pytest.raises(
        ValueError,
        match=says(known.title, "test", wanted, f"data_scripts/{known.script}.py --folder {made}", "fetches it"),
    ):
        find_pairs(name, made)
    assert len(find_pairs(name, made, complete=False)) == MADE[name]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("name", DATASETS)
def test_nothing_there_names_the_place_and_the_script(tmp_path, name, complete):
    message = says(DATASETS[name].title, "there is no", str(tmp_path), f"{DATASETS[name].script}.py", "fetches it")
    with pytest.raises(ValueError, match=message) as error:
        find_pairs(name, tmp_path, complete=complete)
    assert "\n" not in str(error.value)


def test_the_published_counts():
    assert {name: known.counts for name, known in DATASETS.items()} == {
        "gopro": {"train": 2103, "test": 1111},
        "hide": {"train": 6397, "test": 2025},
        "realblur_j": {"train": 3758, "test": 980},
        "realblur_r": {"train": 3758, "test": 980},
        "reds": {"test": 3000, "val": 3000},
        "reds_val300": {"test": 300, "val": 300},
        "kohler": {"test": 48},
        "levin": {"test": 32},
    }


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=says("unknown data set 'goprp'", "gopro, hide, realblur_j")):
        find_pairs("goprp", tmp_path)
    with pytest.raises(ValueError, match="bsds500 holds sharp pictures only"):
        find_pairs("bsds500", tmp_path)
    with pytest.raises(ValueError, match=says("REDS has no split 'train'", "test, val")):
        find_pairs("reds", tmp_path, "train")
    with pytest.raises(ValueError, match=says("unknown blur 'gamma'", "blur, blur_gamma")):
        find_pairs("gopro", tmp_path, blur="gamma")
    with pytest.raises(ValueError, match="HIDE has one kind of blur"):
        find_pairs("hide", tmp_path, blur="blur_gamma")


# --- GoPro ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blur", ["blur", "blur_gamma"])
def test_gopro_names_carry_the_sequence(tmp_path, counted, blur):
    miniatures.make_gopro(tmp_path, frames=2)
    touch(
        tmp_path,
        f"GOPRO_Large/train/GOPR0372_07_00/{blur}/._000047.png",
        f"GOPRO_Large/train/GOPR0372_07_00/{blur}/.DS_Store",
    )
    counted("gopro", "train", 4)
    pairs = find_pairs("gopro", tmp_path, "train", blur)
    assert [pair.name for pair in pairs] == [f"GOPR037{s}_07_0{s - 2}/0000{n}" for s in (2, 3) for n in (47, 48)]
    for pair in pairs:
        sequence, number = pair.name.split("/")
        assert pair.blurry == tmp_path / f"GOPRO_Large/train/{sequence}/{blur}/{number}.png"
        assert pair.sharp == tmp_path / f"GOPRO_Large/train/{sequence}/sharp/{number}.png"


def test_gopro_without_the_chosen_blur(tmp_path):
    touch(tmp_path, "GOPRO_Large/test/GOPR1/blur/1.png", "GOPRO_Large/test/GOPR1/sharp/1.png")
    with pytest.raises(ValueError, match=says("no SEQUENCE/blur_gamma below", "GOPRO_Large/test", "gopro.py")):
        find_pairs("gopro", tmp_path, blur="blur_gamma", complete=False)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("gopro", "GoPro/test"),
        ("gopro", "test/GoPro"),
        ("hide", "test/HIDE"),
        ("hide", "HIDE"),
        ("realblur_r", "test/RealBlur_R"),
        ("realblur_j", "RealBlur_J/test"),
    ],
)
def test_flattened_mirrors(tmp_path, counted, name, folder):
    touch(tmp_path, *(f"{folder}/{side}/GOPR0384_11_00-00000{i}.png" for side in ("input", "target") for i in (2, 1)))
    counted(name, "test", 2)
    pairs = find_pairs(name, tmp_path)
    assert [pair.name for pair in pairs] == ["GOPR0384_11_00-000001", "GOPR0384_11_00-000002"]
    for pair in pairs:
        assert (pair.blurry, pair.sharp) == tuple(
            tmp_path / folder / side / f"{pair.name}.png" for side in ("input", "target")
        )
    if name == "gopro":
        with pytest.raises(
            ValueError, match=says(str(tmp_path / folder), "flattened mirror, which holds blur and not blur_gamma")
        ):
            find_pairs(name, tmp_path, blur="blur_gamma")


@pytest.mark.parametrize("side", ["blur", "sharp"])
def test_a_missing_picture_is_named_or_left_out(tmp_path, counted, side):
    miniatures.make_gopro(tmp_path)
    lost = tmp_path / f"GOPRO_Large/test/GOPR0384_07_00/{side}/000048.png"
    lost.unlink()
    counted("gopro", "test", 3)
    message = (
        says("2 pairs instead of 3") if side == "blur" else says("1 of 3 pairs lack a picture, the first: ", str(lost))
    )
    with pytest.raises(ValueError, match=message):
        find_pairs("gopro", tmp_path)
    assert [pair.name[-2:] for pair in find_pairs("gopro", tmp_path, complete=False)] == ["47", "49"]
    shutil.rmtree(lost.parent.with_name("sharp"))
    with pytest.raises(ValueError, match="pairs lack a picture, the first"):  # nothing is left
        find_pairs("gopro", tmp_path, complete=False)


# --- HIDE -------------------------------------------------------------------------------------------------------


def test_hide_matches_by_file_name_over_all_parts(made, counted):
    counted("hide", "test", 4)
    pairs = find_pairs("hide", made)
    assert [pair.name for pair in pairs] == [
        "test-close-ups/0fromGOPR1092",
        "test-close-ups/1fromGOPR1092",
        "test-long-shot/0fromGOPR1082.MP4",
        "test-long-shot/1fromGOPR1082.MP4",
    ]
    assert all(pair.sharp == made / "HIDE_dataset/GT" / pair.blurry.name for pair in pairs)
    counted("hide", "train", 3)
    assert [pair.name for pair in find_pairs("hide", made, "train")] == [f"train/{i}fromGOPR0950" for i in range(3)]


def test_hide_lacks_a_part(tmp_path):
    miniatures.make_hide(tmp_path)
    shutil.rmtree(tmp_path / "HIDE_dataset/test/test-long-shot")
    with pytest.raises(ValueError, match=says("there is no", "test/test-long-shot", "hide.py")):
        find_pairs("hide", tmp_path)


# --- RealBlur ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", REALBLUR)
def test_realblur_by_its_lists(made, counted, letter):
    assert not (made / REALBLUR_LIST.format(letter)).read_text().endswith("\n")  # the quirk that this test is about
    name = f"realblur_{letter.lower()}"
    counted(name, "test", 4)
    pairs = find_pairs(name, made)
    assert [pair.name for pair in pairs] == ["scene002/1", "scene002/2", "scene003/1", "scene003/2"]
    for pair in pairs:
        scene, number = pair.name.split("/")
        assert pair.blurry == made / "RealBlur" / REALBLUR[letter] / scene / "blur" / f"blur_{number}.png"
        assert pair.sharp == made / "RealBlur" / REALBLUR[letter] / scene / "gt" / f"gt_{number}.png"
    counted(name, "train", 2)
    assert [pair.name for pair in find_pairs(name, made, "train")] == ["scene001/1", "scene001/2"]


def test_realblur_j_and_r_are_never_mixed_up(tmp_path):
    miniatures.make_realblur(tmp_path)
    lists = {letter: tmp_path / REALBLUR_LIST.format(letter) for letter in REALBLUR}
    lists["J"].write_bytes(lists["R"].read_bytes())
    with pytest.raises(
        ValueError, match=says("line 1 of", "is not `gt_path blur_path` of one picture of RealBlur-J", "realblur.py")
    ):
        find_pairs("realblur_j", tmp_path, complete=False)
    assert find_pairs("realblur_r", tmp_path, complete=False)[0].blurry.parts[-4] == REALBLUR["R"]
    text = lists["R"].read_text()  # a blurry picture of J beside a sharp one of R
    head, _, tail = text.rpartition(REALBLUR["R"])
    lists["R"].write_text(head + REALBLUR["J"] + tail)
    with pytest.raises(ValueError, match=says("line 4 of", "of one picture of RealBlur-R")):
        find_pairs("realblur_r", tmp_path, complete=False)
    shutil.rmtree(tmp_path / "RealBlur" / REALBLUR["J"])
    with pytest.raises(ValueError, match=says("there is no", REALBLUR["J"])):
        find_pairs("realblur_j", tmp_path, complete=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{top}/s1/blur/blur_1.png {top}/s1/gt/gt_1.png", "is not `gt_path blur_path`"),
        ("{top}/s1/gt/gt_1.png", "is not `gt_path blur_path`"),
        ("../../{top}/../s1/gt/gt_1.png {top}/s1/blur/blur_1.png", "is not `gt_path blur_path`"),
        ("{top}/s1/gt/gt_1.png {top}/s1/blur/blur_2.png", "of one picture"),
        ("{top}/s1/gt/gt_1.png {top}/s2/blur/blur_1.png", "of one picture"),
        ("{top}/scene002/gt/gt_1.png {top}/scene002/blur/blur_1.png", "two pairs are named scene002/1"),
    ],
)
def test_realblur_lists_that_are_wrong(tmp_path, line, message):
    miniatures.make_realblur(tmp_path)
    path = tmp_path / REALBLUR_LIST.format("J")
    path.write_text(path.read_text() + "\n" + line.format(top=REALBLUR["J"]))
    with pytest.raises(ValueError, match=message):
        find_pairs("realblur_j", tmp_path, complete=False)


def test_realblur_without_its_list(tmp_path):
    miniatures.make_realblur(tmp_path, lists=False)
    with pytest.raises(ValueError, match=says("no official list", "RealBlur/RealBlur_R_test_list.txt", "realblur.py")):
        find_pairs("realblur_r", tmp_path)
    with pytest.raises(ValueError, match=says("RealBlur_J_train_list.txt", "realblur.py", "--train fetches it")):
        find_pairs("realblur_j", tmp_path, "train")
    touch(tmp_path, "datalist/RealBlur_R_test_list.txt")
    top = REALBLUR["R"]
    (tmp_path / "datalist/RealBlur_R_test_list.txt").write_text(
        f"./{top}/scene001/gt/gt_2.png ./{top}/scene001/blur/blur_2.png\r\n"
    )
    assert [pair.name for pair in find_pairs("realblur_r", tmp_path, complete=False)] == ["scene001/2"]


# --- REDS, Koehler, Levin ---------------------------------------------------------------------------------------


def test_reds_val300_is_the_jpeg_track(made, counted):
    counted("reds_val300", "val", 2)
    pairs = find_pairs("reds_val300", made, "val")
    assert [pair.name for pair in pairs] == ["000/00000009", "001/00000009"]
    assert pairs[1].blurry == made / "REDS/val/val_blur_jpeg/001/00000009.jpg"
    assert pairs[1].sharp == made / "REDS/val/val_sharp/001/00000009.png"
    counted("reds", "test", 20)
    pair = find_pairs("reds", made)[13]
    assert pair == (
        "001/00000003",
        made / "REDS/val/val_sharp/001/00000003.png",
        made / "REDS/val/val_blur/001/00000003.png",
    )


def test_reds_lacks_what_one_track_needs(tmp_path):
    miniatures.make_reds(tmp_path, kinds=("val_sharp", "val_blur"))
    assert len(find_pairs("reds", tmp_path, complete=False)) == 20
    with pytest.raises(ValueError, match=says("REDS val-300", "there is no", "val_blur_jpeg", "reds.py")):
        find_pairs("reds_val300", tmp_path)


def test_kohler_frames_are_in_time(tmp_path, counted):
    miniatures.make_kohler(tmp_path, frames=11, size=(8, 8))
    pairs = find_pairs("kohler", tmp_path, complete=False)
    assert [pair.name for pair in pairs[10:13]] == ["1_11", "1_12", "2_01"]
    assert [int(path.stem.split("_")[-1]) for path in pairs[12].sharp] == list(range(1, 12))
    assert (
        pairs[12].blurry == tmp_path / "Kohler/Blurry2_1.png"
        and pairs[12].sharp[0].parent == tmp_path / "Kohler/Image2/Kernel1"
    )
    counted("kohler", "test", 48)
    with pytest.raises(ValueError, match=says("11 sharp frames instead of 1 to 3 belong to", "Blurry1_1.png")):
        find_pairs("kohler", tmp_path)
    shutil.rmtree(tmp_path / "Kohler/Image4")
    with pytest.raises(ValueError, match=says("12 of 48 pairs lack a picture", "Image4", "GroundTruth4_1_1.png")):
        find_pairs("kohler", tmp_path)
    assert len(find_pairs("kohler", tmp_path, complete=False)) == 36


def test_levin_is_the_copy_in_png(tmp_path):
    miniatures.make_levin_mat(tmp_path)
    with pytest.raises(ValueError, match=says("Levin", "there is no", "levin.py")):
        find_pairs("levin", tmp_path)
    miniatures.make_levin(tmp_path)
    pairs = find_pairs("levin", tmp_path)
    assert (
        pairs[9].name == "im2_kernel2"
        and pairs[9].sharp.name == "im2.png"
        and pairs[9].blurry.name == "im2_kernel2_img.png"
    )
    assert torch.equal(*read_image(pairs[9].blurry)[:2])  # gray

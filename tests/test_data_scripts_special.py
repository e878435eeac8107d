"""What is special in one of the data scripts: choices, lists, forms; and the sizes of pictures."""

import importlib
import json

import pytest
from miniatures import make_levin_mat
from PIL import Image
from script_cases import contents, program, published, small  # noqa: F401

import pictures  # isort: skip


def test_gopro_blur_is_chosen_recorded_and_remembered(published, small, tmp_path, capsys):
    data, folder = published("gopro"), tmp_path / "data"
    main = small("gopro")
    assert main("--folder", folder, *data.by_hand) == 0
    said = capsys.readouterr().out
    assert (
        "blurry pictures: blur (the default: all published reference numbers assume it" in said
        and "--blur blur" in said
    )
    chosen = lambda: json.loads((folder / "gopro.json").read_text())["choices"]
    assert chosen() == {"blur": "blur"}
    assert main("--folder", folder, "--blur", "blur_gamma") == 0
    assert "choice changed: blur blur -> blur_gamma" in capsys.readouterr().out and chosen() == {"blur": "blur_gamma"}
    assert main("--folder", folder) == 0
    assert "blurry pictures: blur_gamma (as chosen)" in capsys.readouterr().out and chosen() == {"blur": "blur_gamma"}


def test_a_record_that_is_none(published, small, tmp_path, capsys):
    (tmp_path / "gopro.json").write_text("[1, 2]")
    assert small("gopro")("--folder", tmp_path, *published("gopro").by_hand) == 1
    assert "gopro.json is not a record of this script" in capsys.readouterr().err
    assert (tmp_path / "gopro.json").read_text() == "[1, 2]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "\n".join(text.splitlines()[:-1]), "has 3 of 4 pairs"),
        (lambda text: text.replace("blur_1.png", "blur_2.png"), "pairs RealBlur-J"),
        (
            lambda text: text.replace("RealBlur-J", "RealBlur-R").replace("ECC", "BM3D_ECC"),
            "not a sharp and a blurry picture of",
        ),
        (lambda text: "<html></html>", "line 1"),
        (lambda text: text.replace("scene002", "scene099"), "names 4 pictures that are not there"),
    ],
    ids=["short", "crossed", "R for J", "page", "unknown pictures"],
)
def test_realblur_lists_are_checked(published, small, tmp_path, capsys, change, message):
    data, folder = published("realblur"), tmp_path / "data"
    path = tmp_path / "RealBlur_J_test_list.txt"
    path.write_text(change(data.archives[path.name].read_text()))
    others = [file for name, file in data.archives.items() if name != path.name]
    assert small("realblur")("--folder", folder, "--from-archive", *others, "--lists", path) == 1
    assert message in capsys.readouterr().err
    assert not [name for name in contents(folder) if name.endswith(".png")]


def test_realblur_lists_of_the_training_pairs(published, small, tmp_path):
    data, folder = published("realblur"), tmp_path / "data"
    lists = [data.tree / f"RealBlur/RealBlur_{kind}_train_list.txt" for kind in "JR"]
    assert small("realblur")("--folder", folder, *data.by_hand) == 0
    assert small("realblur")("--folder", folder, "--train", "--lists", *lists) == 0
    assert contents(folder / "RealBlur") == contents(data.tree / "RealBlur")


def test_realblur_lists_have_known_checksums(published, small, tmp_path, capsys):
    data, module = published("realblur"), importlib.import_module("realblur")
    assert small("realblur", SHA256=module.SHA256)("--folder", tmp_path / "data", *data.by_hand) == 1
    assert "instead of 167cc8d37939" in capsys.readouterr().err


def test_reds_val_300_alone(published, small, tmp_path, capsys):
    data, folder = published("reds"), tmp_path / "data"
    files = [data.archives[name] for name in ("val_sharp.zip", "val_blur_jpeg.zip")]
    assert small("reds")("--folder", folder, "--only", "val-300", "--from-archive", *files) == 0
    said = capsys.readouterr().out
    assert "--sets reds_val300 --root" in said
    assert (
        len(list((folder / "REDS/val/val_blur_jpeg").glob("*/*9.jpg"))) == 2
        and not (folder / "REDS/val/val_blur").exists()
    )
    assert small("reds")("--folder", folder, "--only", "val", "--from-archive", data.archives["val_blur.zip"]) == 0


def test_levin_as_the_authors_publish_it(small, tmp_path, monkeypatch, capsys):
    tree = make_levin_mat(tmp_path / "tree")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    rar, folder = tmp_path / "LevinEtalCVPR09Data.rar", tmp_path / "data"
    rar.write_bytes(b"Rar!\x1a\x07\x00")
    assert small("levin")("--folder", folder, "--form", "mat", "--from-archive", rar) == 1
    assert "none of unrar, 7z, 7zz, bsdtar is installed" in capsys.readouterr().err
    program(
        tmp_path / "bin/unrar", f"import shutil, sys; shutil.copytree({str(tree)!r}, sys.argv[-1], dirs_exist_ok=True)"
    )
    assert small("levin")("--folder", folder, "--form", "mat", "--from-archive", rar) == 0
    assert len(list((folder / "LevinEtalCVPR09Data/Levin09blurdata").glob("*.mat"))) == 32
    assert capsys.readouterr().out.endswith(f"Next:\n  python data_scripts/levin.py --form png --folder {folder}\n")


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.jpg", {}), ("b.jpg", {"progressive": True}), ("c.jpg", {"exif": b"Exif\0\0" + bytes(3000)})],
)
def test_picture_sizes_from_the_header(tmp_path, name, options):
    Image.new("RGB", (37, 19)).save(tmp_path / name, **options)
    assert pictures.picture_size(tmp_path / name) == (37, 19)
    whole_file = (tmp_path / name).read_bytes()
    for length in (0, 1, 3, 10, 20):
        (tmp_path / name).write_bytes(whole_file[:length])
        assert pictures.picture_size(tmp_path / name) is None

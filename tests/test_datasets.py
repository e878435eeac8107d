"""The paper's data sets, in miniature: every layout, every quirk, and what is said of what is missing."""

import dataclasses
from pathlib import Path

import pytest

from tinymsg import datasets
from tinymsg.datasets import DATASETS, REALBLUR, find_pairs, sharp_paths


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture
def counted(monkeypatch):
    """counted(name, split, n): pretend that the set was published with n pairs."""

    def change(name: str, split: str, count: int) -> None:
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], counts={split: count}))

    return change


def gopro(root: Path, split="test", kinds=("blur", "blur_gamma", "sharp")) -> None:
    touch(root, *(f"GOPRO_Large/{split}/{s}/{kind}/00000{i}.png" for s in ("GOPR2", "GOPR1") for kind in kinds for i in (1, 2)))


@pytest.mark.parametrize("blur", ["blur", "blur_gamma"])
def test_gopro_names_carry_the_sequence(tmp_path, counted, blur):
    gopro(tmp_path)
    gopro(tmp_path, "train")
    touch(tmp_path, f"GOPRO_Large/test/GOPR1/{blur}/._000001.png", "GOPRO_Large/test/GOPR1/blur/.DS_Store")  # from a Mac
    counted("gopro", "test", 4)
    pairs = find_pairs("gopro", tmp_path, "test", blur)
    assert [pair.name for pair in pairs] == ["GOPR1/000001", "GOPR1/000002", "GOPR2/000001", "GOPR2/000002"]
    for pair in pairs:
        sequence, number = pair.name.split("/")
        assert pair.blurry == tmp_path / f"GOPRO_Large/test/{sequence}/{blur}/{number}.png"
        assert pair.sharp == tmp_path / f"GOPRO_Large/test/{sequence}/sharp/{number}.png"

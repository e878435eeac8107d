"""What a training learns from: synthetic domains, folders, data sets; what is held out; what its records say."""

import pytest
import torch
from miniatures import make_gopro
from PIL import Image

from tinymsg.cli import sources
from tinymsg.cli.sources import open_data

CPU = torch.device("cpu")


@pytest.fixture
def gopro(tmp_path):
    """The training folder of a miniature GoPro: six sequences of two pairs."""
    return make_gopro(tmp_path, train=6, frames=2, size=(40, 32)) / "GOPRO_Large/train"


def test_synthetic_domains(tiny_recipe):
    batches, identity, watched = open_data(tiny_recipe(domain="noise", seed=4), CPU)
    y0, x = batches(0)
    assert y0.shape == x.shape == (2, 3, 16, 16) and watched is None
    assert batches.pairs.seed == 4 and "noise on scenes" in identity["name"]
    assert open_data(tiny_recipe(channels=1), CPU)[0](0)[0].shape == (2, 1, 16, 16)
    _, _, watched = open_data(tiny_recipe(), CPU, validate=True, pictures=3)
    assert watched.pictures[0].shape == (3, 3, 16, 16)


def test_a_flat_folder(tiny_recipe, tmp_path):
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (20, 24), (90, 80, 70)).save(tmp_path / side / "1.png")
    assert open_data(tiny_recipe(), CPU, str(tmp_path))[0](0)[0].shape == (2, 3, 16, 16)


def test_the_choice_of_blur_is_recorded(tiny_recipe, gopro):
    (plain, said, _), (gamma, other, _) = (open_data(tiny_recipe(), CPU, str(gopro), b) for b in ("blur", "blur_gamma"))
    assert said["pairs"] == 12 and said["blur"] == "blur" != other["blur"] and "manifest_sha256" not in said
    (sharp, blurry), (same, different) = plain(0), gamma(0)
    assert torch.equal(sharp, same) and not torch.equal(blurry, different)


def test_the_last_sequence_is_held_out_unless_others_are_given(tiny_recipe, gopro):
    batches, identity, watched = open_data(tiny_recipe(), CPU, str(gopro), validate=True, pictures=4, size=24)
    assert "GOPR0377_07_05" in identity["held_out"] and "without 2" in batches.pairs.name
    assert [tuple(image.shape) for image in watched.pictures] == [(2, 3, 24, 24)] * 2
    test = str(gopro.parent / "test")
    batches, identity, other = open_data(tiny_recipe(), CPU, str(gopro), validate=test)
    assert "held_out" not in identity and len(batches.pairs) == 12 and "test" in other.name
    assert open_data(tiny_recipe(), CPU, validate=test)[2].name == other.name


def test_a_data_set_as_content(tiny_recipe, gopro):
    """As the full profile names it: an incomplete set is not trained on by mistake."""
    with pytest.raises(ValueError, match="12 pairs instead of 2103"):
        open_data(tiny_recipe(content="gopro"), CPU, root=str(gopro.parents[1]))


def test_processes_share_the_batch(tiny_recipe, monkeypatch):
    whole = open_data(tiny_recipe(batch=4), CPU)[0](3)
    for rank in (0, 1):
        monkeypatch.setattr(sources, "rank_and_processes", lambda rank=rank: (rank, 2))
        mine = open_data(tiny_recipe(batch=4), CPU)[0](3)
        assert all(torch.equal(part, image[rank::2]) for part, image in zip(mine, whole, strict=True))
    with pytest.raises(ValueError, match="does not divide"):
        open_data(tiny_recipe(batch=2, accumulate=2), CPU)


def test_unknown_content(tiny_recipe):
    with pytest.raises(ValueError, match="unknown content"):
        open_data(tiny_recipe(content="paintings"), CPU)

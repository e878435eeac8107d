"""Validation: what is held out is never learnt from, and every look is the same look."""

import pytest
import torch
from miniatures import make_gopro
from PIL import Image

from tinymsg.data import read_image
from tinymsg.datasets.folders import PairedImages
from tinymsg.evaluate import psnr
from tinymsg.sample import restore
from tinymsg.train import TrainState, loss_terms
from tinymsg.training.validation import (
    LEVELS,
    VALIDATION_SEED,
    Validation,
    WithoutHeldOut,
    centre_crops,
    choose_held_out,
    synthetic_validation,
)

CPU = torch.device("cpu")


@pytest.fixture
def plain_pairs(tmp_path):
    """Twelve pairs in six sequences, each picture of one gray of its own."""
    for i in range(12):
        for side in ("blur", "sharp"):
            path = tmp_path / f"seq{i // 2}" / side / f"{i % 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24 + 8 * (i % 2), 32), (20 * i,) * 3).save(path)
    return PairedImages(tmp_path)


def grays(images: torch.Tensor) -> set[int]:
    return {round((float(image.mean()) + 1) / 2 * 255 / 20) for image in images}


def test_the_last_sequence_is_held_out(plain_pairs):
    numbers, words = choose_held_out(plain_pairs.names)
    assert numbers == [10, 11] and "seq5" in words
    assert choose_held_out([f"{i:03d}" for i in range(40)])[0] == [38, 39], "without sequences, a twentieth"
    assert choose_held_out(["a/1", "b/1", "b/2"])[0] == [2], "a sequence that is most of the data is not given up"
    with pytest.raises(ValueError, match="single pair"):
        choose_held_out(["a/1"])


def test_what_is_held_out_is_never_learned_from(plain_pairs):
    kept = WithoutHeldOut(plain_pairs, [10, 11])
    y0, _ = kept.crops(torch.arange(300), 16)
    assert grays(y0) == set(range(10))
    before, _ = plain_pairs.crops(torch.arange(300), 16)
    unaffected = [i for i, image in enumerate(before) if grays([image]) <= set(range(10))]
    assert torch.equal(before[unaffected], y0[unaffected]) and 200 < len(unaffected) < 300
    half, _ = kept.crops(torch.arange(150, 300), 16)
    assert torch.equal(half, y0[150:]), "a crop does not depend on its batch"


def test_centre_crops(plain_pairs):
    y0, x = centre_crops(plain_pairs, list(range(12)), 4, 20)
    assert y0.shape == x.shape == (4, 3, 16, 16) and sorted(grays(y0)) == [0, 3, 6, 9]
    assert centre_crops(plain_pairs, [3], 4, 999)[0].shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="under 8 pixels"):
        centre_crops(plain_pairs, [3], 4, 7)


def test_a_look_closed_form(tiny_recipe, tmp_path):
    """The row is what one computes by hand with the averaged weights; the strip shows blurry, restored, sharp."""
    recipe = tiny_recipe()
    look = synthetic_validation(recipe, 2, CPU)
    y0, x = look.pictures
    state = TrainState(recipe)
    with torch.no_grad():
        for p in state.ema_model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    row = look(state, tmp_path)
    restored = restore(state.ema_model, x, look.setting, torch.Generator().manual_seed(VALIDATION_SEED))
    assert row["psnr"] == pytest.approx(float(psnr((restored + 1) / 2, (y0 + 1) / 2).mean()), rel=1e-4)
    eps = torch.randn(y0.shape, generator=torch.Generator().manual_seed(VALIDATION_SEED + 1))
    with torch.no_grad():
        expected = [float(loss_terms(state.ema_model, y0, x, torch.full((2,), level), eps)[0]) for level in LEVELS]
    assert [row[f"denoise_{level}"] for level in LEVELS] == pytest.approx(expected)
    assert row["denoise"] == pytest.approx(sum(expected) / len(expected)) and row["step"] == 0 and 0 < row["ssim"] < 1
    assert row["lpips"] != row["lpips"], "crops of 16 pixels are too small for it: not measured"
    strip = read_image(tmp_path / "00000000.png") * 2 - 1
    assert strip.shape == (3, 32, 48)
    left = strip[:, :16, :16]
    assert float((left - x[0]).abs().max()) < 0.01
    again = look(state, tmp_path)
    assert again.pop("lpips") != row.pop("lpips") and again == row, "a second look sees the same"


@pytest.mark.parametrize(
    "changes", [{"kind": "regression", "scales": ()}, {"channels": 1}, {"predict": "eps", "residual": False}]
)
def test_every_kind_of_model_is_validated(tiny_recipe, tmp_path, changes):
    recipe = tiny_recipe(**changes, crop=32)
    row = synthetic_validation(recipe, 2, CPU)(TrainState(recipe), tmp_path)
    assert all(value == value for value in row.values())


def test_the_name_says_whether_the_pictures_are_trainings_own(tiny_recipe, tmp_path):
    Image.effect_noise((40, 40), 60).save(tmp_path / "a.png")
    own, names = "of training's own pictures blurred anew", {}
    for content, domain in (
        ("scenes", "jpeg"),
        ("photos", "jpeg"),
        (str(tmp_path), "gopro_like"),
        ("photos", "new_content"),
    ):
        names[content, domain] = synthetic_validation(tiny_recipe(content=content, domain=domain), 2, CPU).name
    assert [own in name for name in names.values()] == [False, True, True, False]
    assert ["2 fresh crops of" in name for name in names.values()] == [True, False, False, True]


def test_without_ssim_the_rest_goes_on(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tinymsg.training.validation.available", lambda metrics, side: (("psnr",), {"ssim": "no torchmetrics"})
    )
    row = synthetic_validation(tiny_recipe(), 1, CPU)(TrainState(tiny_recipe()), tmp_path)
    assert row["ssim"] != row["ssim"] and row["psnr"] > 0  # NaN: not measured


def test_gopro_fixed_pictures(tiny_recipe, tmp_path):
    pairs = PairedImages(make_gopro(tmp_path, train=2, frames=3, size=(48, 40)) / "GOPRO_Large/train")
    look = Validation(centre_crops(pairs, [3, 5], 2, 24), "two")
    row = look(TrainState(tiny_recipe()), tmp_path / "v")
    assert row["psnr"] > 10 and list((tmp_path / "v").iterdir())

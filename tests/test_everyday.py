"""The domain `everyday`: what is drawn anew for each picture; and light that is never invented at a border."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import OnDevice

from tinymsg import blur
from tinymsg.blur import RESPONSES, Camera, Motion, Range, draw_range, photograph, resampling
from tinymsg.data import DOMAINS, Contents, SyntheticPairs
from tinymsg.rng import Draws

EVERYDAY = DOMAINS["everyday"]
CLEAN = replace(EVERYDAY.camera, shot=0.0, read=0.0, jpeg_quality=None)
LEVEL = 2 / 255  # one of 256, in the model's range


def streams(n: int, seed: int = 5) -> Draws:
    return Draws(seed, torch.arange(n))


@pytest.fixture(scope="module")
def noise() -> Contents:
    """Pictures in which any blur shows everywhere."""
    pixels = torch.randint(0, 256, (2, 3, 160, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Contents(list(pixels), "noise")


def test_one_pair_in_ten_is_sharp(noise):
    """Of pairs without noise and JPEG; sharp to the last level, whatever the response and the scale."""
    y0, x = SyntheticPairs(noise, replace(EVERYDAY, camera=CLEAN)).crops(torch.arange(600), 12)
    worst = (y0 - x).abs().flatten(1).amax(dim=1)
    sharp = worst < 1.01 * LEVEL
    assert 0.08 < sharp.float().mean() < 0.13
    assert (worst[~sharp] > 5 * LEVEL).float().mean() > 0.95


def test_motion_is_mixed():
    path = EVERYDAY.motion.draw(streams(3000))
    still = (path == 0).flatten(1).all(dim=1)
    assert 0.17 < still.float().mean() < 0.23
    rolls = (path[..., 2] != 0).any(dim=1)
    assert 0.09 < rolls.float().mean() < 0.15
    roll = (path[rolls, -1, 2] - path[rolls, 0, 2]).abs()
    assert 0.2 <= roll.min() < 0.3 and 1.9 < roll.max() <= 2.001
    shifts = path[~still, :, :2]
    extent = (shifts.amax(dim=1) - shifts.amin(dim=1)).norm(dim=-1)
    assert extent.min() < 1.3 and 25 < extent.max() < 45  # a walk has its length along both axes
    assert 4 < extent.median() < 8  # as many short paths as long ones
    steps = shifts.diff(dim=1)
    straight = (steps - steps.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2)) < 1e-4
    assert 0.28 < straight.float().mean() < 0.39  # the linear ones


def test_cameras_are_mixed_within_their_ranges():
    values = EVERYDAY.camera.draw(streams(2000), torch.device("cpu"))
    for name, (low, high, middle) in {
        "shot": (1e-5, 1e-2, 3.2e-4),
        "read": (3e-4, 6e-3, 1.3e-3),
        "red_gain": (1.9, 2.4, 2.15),
        "blue_gain": (1.5, 1.9, 1.7),
    }.items():
        assert values[name].shape == (2000, 1, 1, 1) and values[name].dtype == torch.float32
        assert low * 0.999 <= values[name].min() < values[name].max() <= high * 1.001
        assert 0.8 < values[name].median() / middle < 1.25
    quality = values["jpeg_quality"]
    assert 0.77 < (quality > 0).float().mean() < 0.83
    assert 30 <= quality[quality > 0].min() < 32 and 93 < quality.max() <= 95
    assert values["highlights"].min() == 1 and 7.5 < values["highlights"].max() <= 8.001
    assert 0.45 < (values["response"] == 1).float().mean() < 0.55
    assert isinstance(EVERYDAY.scale, Range)
    scale = draw_range(EVERYDAY.scale, streams(2000))
    assert 0.5 <= scale.min() < 0.52 and 0.65 < (scale == 1).float().mean() < 0.75


def test_one_batch_holds_all_kinds(noise):
    y0, x = SyntheticPairs(noise, "everyday").crops(torch.arange(16), 16)
    error = (y0 - x).square().mean(dim=(1, 2, 3))
    assert error.max() > 10 * error.min()
    assert len(error.unique()) == 16


def test_a_pair_is_the_same_in_any_batch(noise):
    pairs = SyntheticPairs(noise, "everyday", seed=3)
    batch = pairs.crops(torch.arange(24), 16)
    for i in (0, 7, 23):
        for image, again in zip(batch, pairs.crops(torch.tensor([i]), 16), strict=True):
            assert (image[i] - again[0]).abs().mean() < 1e-3
    other = SyntheticPairs(noise, "everyday", seed=4).crops(torch.arange(24), 16)
    assert (batch[1] - other[1]).abs().mean() > 0.1


def test_every_second_pair_is_of_the_other_domain(noise):
    """Each as it would be in its own domain, in whatever order and company it is asked for."""
    index = torch.tensor([5, 0, 2, 3, 9])
    made = SyntheticPairs(noise, "everyday", seed=3).crops(index, 16)
    own = SyntheticPairs(noise, replace(EVERYDAY, other=None), seed=3).crops(index, 16)
    film = SyntheticPairs(noise, "film", seed=3).crops(index, 16)
    for image, even, odd in zip(made, own, film, strict=True):
        torch.testing.assert_close(
            image, torch.where(index[:, None, None, None] % 2 == 0, even, odd), rtol=0, atol=1e-3
        )
    assert (own[1] - film[1]).abs().amin(dim=0).max() > 0.01


def test_everyday_is_made_on_the_device_without_waiting(noise, stand_in):
    """Of these ten some roll, some are scaled, and JPEG's quality differs."""
    index = torch.arange(10)
    expected = SyntheticPairs(noise, "everyday").crops(index, 12)
    with stand_in():
        found = SyntheticPairs(noise, "everyday", device="cuda").crops(index, 12)
    for image, wanted in zip(found, expected, strict=True):
        assert isinstance(image, OnDevice)
        torch.testing.assert_close(image.held, wanted)


# --- the parts ----------------------------------------------------------------------------------------------


def test_a_range_is_uniform_in_the_number_or_in_its_logarithm():
    linear, log = draw_range((1.0, 100.0), streams(4000)), draw_range(Range(1.0, 100.0, log=True), streams(4000))
    assert 48 < linear.median() < 53 and 9 < log.median() < 11
    some = draw_range(Range(5.0, 6.0, share=0.25, otherwise=-1.0), streams(4000))
    assert 0.72 < (some == -1).float().mean() < 0.78 and some.max() < 6


def test_constants_draw_no_number():
    """So that a picture of a domain of constants is what it was before ranges were known."""
    draws, untouched = streams(3), streams(3)
    Camera(shot=0.1, jpeg_quality=50).draw(draws, torch.device("cpu"))
    assert torch.equal(draws.uniform(), untouched.uniform())


def test_each_picture_has_its_own_quality():
    picture = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    quality = torch.arange(1, 101)
    together = blur.jpeg(picture.expand(100, -1, -1, -1), quality)
    for q in quality.tolist():
        torch.testing.assert_close(together[q - 1 : q], blur.jpeg(picture, q), rtol=0, atol=1e-6)


def test_noise_is_in_the_light_before_the_white_balance():
    """The sensor saw light / gain: shot noise grows by sqrt(gain), that of the electronics by the gain."""
    camera = Camera("none", red_gain=2.25, blue_gain=1.5, shot=0.001, read=0.004)
    flat = torch.full((4, 3, 200, 200), 0.4)
    _, x = photograph(flat, Motion("linear", length=(0.0, 0.0)), camera, streams(4))
    gains = torch.tensor([2.25, 1.0, 1.5])
    expected = gains * 0.001 * 0.4 + (gains * 0.004) ** 2 + 1 / (12 * 255**2)
    variance = (x - 0.4).transpose(0, 1).flatten(1).var(dim=1)
    torch.testing.assert_close(variance, expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("response", [tuple(RESPONSES), ("measured", "gamma")])
def test_several_responses_are_each_undone(response):
    sharp = blur.quantise(torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(2)))
    y0, x = photograph(sharp, Motion("linear", length=(0.0, 0.0)), Camera(response), streams(12))
    torch.testing.assert_close(y0, sharp, rtol=0, atol=1e-6)
    torch.testing.assert_close(x, sharp, rtol=0, atol=1.01 / 255)


def test_defocus_is_a_gaussian_and_leaves_the_sharp_picture_alone():
    sharp = torch.zeros(1, 3, 21, 21)
    sharp[..., 10, 10] = 1
    y0, x = photograph(sharp, Motion("linear", length=(0.0, 0.0)), Camera("none", defocus=0.8), streams(1))
    assert torch.equal(y0, sharp)
    axis = torch.arange(21) - 10.0
    spread = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 0.8**2))
    torch.testing.assert_close(x[0, 0], spread / spread.sum(), rtol=0, atol=0.51 / 255)


def test_rolled_pictures_are_their_own_and_do_not_change_the_others():
    sharp = blur.quantise(torch.rand(40, 3, 24, 24, generator=torch.Generator().manual_seed(3)))
    motion = Motion("linear", length=(2.0, 4.0), roll=Range(3.0, 6.0, share=0.5))
    rolls = motion.draw(streams(40))[:, 0, 2] != 0
    _, mixed = photograph(sharp, motion, Camera("none"), streams(40))
    _, straight = photograph(sharp, replace(motion, roll=Range(0.0, 0.0, share=0.5)), Camera("none"), streams(40))
    different = (mixed - straight).abs().flatten(1).amax(dim=1) > 0.1
    assert torch.equal(different, rolls) and 0 < rolls.sum() < 40


def test_resampling_cuts_or_shrinks():
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(4))
    same, half = resampling(torch.tensor([1.0, 0.5]), 64, 32)
    assert torch.equal(same @ image @ same.T, image[..., 16:48, 16:48])
    expected = F.interpolate(image, scale_factor=0.5, mode="bicubic", antialias=True)
    torch.testing.assert_close((half @ image @ half.T)[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], rtol=0, atol=1e-5)
    for scale in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="at most 1"):
            resampling(torch.tensor([scale]), 8, 8)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Motion(("smooth", "spiral")), "spiral.*linear"),
        (lambda: Motion(("smooth", "linear"), angle=3.0), "linear"),
        (lambda: Motion(length=Range(0.0, 3.0, log=True)), "length.*> 0"),
        (lambda: Camera(("gamma", "film")), "film.*gamma"),
        (lambda: Camera(shot=(0.2, 0.1)), "shot.*low"),
        (lambda: Camera(read=-0.1), "read.*0"),
        (lambda: Camera(highlights=(0.5, 2.0)), "highlights.*1"),
        (lambda: Camera(jpeg_quality=Range(0, 90)), "jpeg_quality.*1"),
    ],
)
def test_ranges_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- borders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gopro_like", "camera_shake", "one_kernel"])
def test_what_lies_beyond_the_margin_is_never_seen(name):
    """Pictures in other surroundings give the same pair: a path that left its margin would show them."""
    motion, size, around = DOMAINS[name].motion, 32, 12
    margin = DOMAINS[name].margin(size)
    side = size + 2 * (margin + around)
    wide = blur.quantise(torch.rand(60, 1, side, side, generator=torch.Generator().manual_seed(5)))
    narrow = wide[..., around:-around, around:-around]
    _, known = photograph(wide, motion, Camera("none"), streams(60), margin + around)
    _, x = photograph(narrow, motion, Camera("none"), streams(60), margin)
    torch.testing.assert_close(x, known, rtol=0, atol=1.01 / 255)


def test_the_rim_of_what_is_cut_is_never_seen(noise, monkeypatch):
    """Whatever the scale, the roll and the defocus: the light of a pair comes from within the cut."""
    pairs = SyntheticPairs(noise, replace(EVERYDAY, camera=CLEAN))
    index = torch.arange(64)
    expected = pairs.crops(index, 16)
    cut = noise.cut

    def rimmed(draws: Draws, sizes: list[int]) -> list[torch.Tensor]:
        return [F.pad(image[:, 1:-1, 1:-1], (1, 1, 1, 1), value=255) for image in cut(draws, sizes)]

    monkeypatch.setattr(noise, "cut", rimmed)
    for image, wanted in zip(pairs.crops(index, 16), expected, strict=True):
        torch.testing.assert_close(image, wanted, rtol=0, atol=1.01 * LEVEL)

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tinymsg import blur
from tinymsg.blur import PATHS, RESPONSES, Camera, Motion
from tinymsg.data import DOMAINS, photo, read_image
from tinymsg.rng import Draws


def streams(n: int, seed: int = 0, device: str | torch.device = "cpu") -> Draws:
    return Draws(seed, torch.arange(n, device=device))


def noise_image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- camera response --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESPONSES)
def test_response_is_a_monotone_bijection_of_the_unit_interval(name):
    encode, decode = RESPONSES[name]
    values = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(decode(encode(values)), values, rtol=0, atol=1e-9)
    torch.testing.assert_close(encode(decode(values)), values, rtol=0, atol=1e-9)
    assert encode(values[0]) == 0 and abs(encode(values[-1]) - 1) < 1e-12
    assert (encode(values).diff() > 0).all()
    assert encode(torch.tensor(3.0)) == 1 and encode(torch.tensor(-1.0)) == 0  # the sensor clips


def test_gamma_and_measured_response_closed_forms():
    light = torch.tensor([0.1, 0.5], dtype=torch.float64)
    torch.testing.assert_close(blur.gamma_encode(light), light ** (1 / 2.2))
    torch.testing.assert_close(blur.measured_encode(light), 1.6 * light**0.9 / (light**0.9 + 0.6))


# --- motion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_path_contract(name, device):
    length = torch.tensor([0.0, 1.0, 8.0, 30.0], device=device).repeat(25)
    path = PATHS[name](streams(100, device=device), length, 17).cpu()
    assert path.shape == (100, 17, 2) and torch.isfinite(path).all()
    torch.testing.assert_close(path.mean(dim=1), torch.zeros(100, 2), rtol=0, atol=1e-4)
    assert (path[::4].abs() < 1e-6).all()  # no length, no motion
    span = (path.amax(dim=1) - path.amin(dim=1)).norm(dim=-1)
    length = length.cpu()
    assert (span <= 1.42 * length + 1e-3).all() and (span[1:] >= 0.6 * length[1:]).all()
    assert path[2::4].std(dim=0).max() > 0.5  # images do not share a path
    alone = PATHS[name](Draws(0, torch.tensor([7], device=device)), length[7:8].to(device), 17).cpu()
    torch.testing.assert_close(alone[0], path[7], rtol=1e-4, atol=1e-4)


def test_linear_path_is_straight_uniform_and_turns_counter_clockwise():
    length = torch.tensor([9.0])
    path = blur.linear_path(streams(1), length, 5, angle=90.0)[0]
    torch.testing.assert_close(
        path, torch.tensor([[0, 4.5], [0, 2.25], [0, 0], [0, -2.25], [0, -4.5]]), rtol=0, atol=1e-5
    )


def test_walk_has_the_length_asked_for_as_its_larger_extent():
    length = torch.full((200,), 15.0)
    path = blur.walk_path(streams(200), length, 33)
    extent = (path.amax(dim=1) - path.amin(dim=1)).amax(dim=-1)
    torch.testing.assert_close(extent, length, rtol=1e-4, atol=1e-3)
    turns = (path.diff(dim=1)[:, 1:] * path.diff(dim=1)[:, :-1]).sum(dim=-1) < 0
    assert 0.02 < turns.float().mean() < 0.4  # inertia, and jolts


def test_smooth_path_bends():
    path = blur.smooth_path(streams(100), torch.full((100,), 10.0), 33)
    torch.testing.assert_close((path[:, -1] - path[:, 0]).norm(dim=-1), torch.full((100,), 10.0), rtol=1e-3, atol=1e-3)
    travelled = path.diff(dim=1).norm(dim=-1).sum(dim=1)
    assert travelled.max() > 10.5 and travelled.min() < 10.1


def test_motion_with_fixed_kernels_draws_from_so_many_paths():
    poses = Motion("walk", kernels=3).draw(streams(200))
    assert len(torch.unique(poses.flatten(1).round(decimals=4), dim=0)) == 3
    assert torch.equal(poses.unique(dim=0), Motion("walk", kernels=3).draw(streams(200, seed=9)).unique(dim=0))


def test_motion_ranges_and_roll():
    poses = Motion("linear", length=(4.0, 6.0), roll=(1.0, 2.0)).draw(streams(500))
    length = (poses[:, -1, :2] - poses[:, 0, :2]).norm(dim=-1)
    assert 4 <= length.min() < 4.1 and 5.9 < length.max() <= 6.001
    roll = poses[:, -1, 2] - poses[:, 0, 2]
    assert roll.abs().min() >= 1 and roll.abs().max() <= 2.001
    assert 0.4 < (roll > 0).float().mean() < 0.6
    torch.testing.assert_close(poses.mean(dim=1), torch.zeros(500, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": "spiral"}, "spiral.*linear.*smooth.*walk"),
        ({"length": (5.0, 3.0)}, "low, high"),
        ({"length": (-1.0, 3.0)}, "low >= 0"),
        ({"angle": 20.0}, "linear"),
        ({"steps": 1}, "at least 2"),
        ({"kernels": 0}, "at least 1"),
    ],
)
def test_motion_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        Motion(**changes)


@pytest.mark.parametrize("name", DOMAINS)
def test_no_path_of_a_domain_leaves_its_kernel(name):
    """`photograph` sizes its kernels from the family of motions, not from the paths that were drawn."""
    motion = DOMAINS[name].motion
    path = motion.draw(streams(2000, seed=11))
    size = 2 * math.ceil(motion.reach) + 1
    kernel = blur.path_to_kernel(path, size)
    torch.testing.assert_close(kernel.sum(dim=(1, 2)), torch.ones(2000), rtol=0, atol=1e-5)
    assert kernel.min() >= 0


# --- kernels and light ------------------------------------------------------------------------------------------


def test_kernel_of_one_pose_is_bilinear_and_on_its_side():
    kernel = blur.path_to_kernel(torch.tensor([[[1.25, -2.0]]]), 7)[0]
    expected = torch.zeros(7, 7)
    expected[3 - 2, 3 + 1], expected[3 - 2, 3 + 2] = 0.75, 0.25  # row is y, column is x
    torch.testing.assert_close(kernel, expected)


def test_kernel_centroid_and_border():
    path = torch.tensor([[[3.0, 3.0], [-3.0, 1.5], [0.5, -3.0]]])
    kernel = blur.path_to_kernel(path, 7)[0]
    axis = torch.arange(7) - 3.0
    assert abs((kernel.sum(dim=0) * axis).sum() - path[0, :, 0].mean()) < 1e-5
    assert abs((kernel.sum(dim=1) * axis).sum() - path[0, :, 1].mean()) < 1e-5
    assert torch.equal(blur.path_to_kernel(torch.zeros(1, 4, 3), 1), torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="3.0 px.* 5 .* 2"):
        blur.path_to_kernel(path, 5)
    for size in (4, 0, -1):
        with pytest.raises(ValueError, match="odd"):
            blur.path_to_kernel(path, size)


@pytest.mark.parametrize("padding", ["reflect", "valid"])
@pytest.mark.parametrize("kh, kw, h, w", [(5, 7, 20, 23), (1, 9, 1, 40), (1, 1, 6, 5), (3, 3, 3, 3)])
def test_convolve_is_the_textbook_convolution(padding, kh, kw, h, w, device):
    linear = noise_image(3, 2, h, w).to(device)
    kernel = noise_image(3, kh, kw, seed=1).to(device)
    padded = linear if padding == "valid" else F.pad(linear, (kw // 2, kw // 2, kh // 2, kh // 2), mode=padding)
    expected = torch.stack(
        [F.conv2d(image[:, None], one.flip(0, 1)[None, None])[:, 0] for image, one in zip(padded, kernel, strict=True)]
    )
    torch.testing.assert_close(blur.convolve(linear, kernel, padding), expected, rtol=1e-4, atol=1e-4)
    shared = blur.convolve(linear, kernel[:1], padding)
    torch.testing.assert_close(shared[0], expected[0], rtol=1e-4, atol=1e-4)


def test_convolve_moves_light_to_where_the_kernel_says():
    impulse = torch.zeros(1, 1, 11, 11)
    impulse[..., 5, 5] = 1
    kernel = blur.path_to_kernel(torch.tensor([[[2.0, -1.0]]]), 5)
    moved = blur.convolve(impulse, kernel)
    assert moved[0, 0, 4, 7] > 0.999 and abs(moved.sum() - 1) < 1e-5


def test_convolve_of_images_smaller_than_the_kernel():
    for h, w in ((1, 1), (2, 9), (3, 3)):
        linear = torch.full((1, 3, h, w), 0.4)
        kernel = torch.full((1, 9, 9), 1 / 81)
        torch.testing.assert_close(blur.convolve(linear, kernel), linear)
    with pytest.raises(ValueError, match="smaller"):
        blur.convolve(torch.zeros(1, 3, 5, 20), torch.zeros(1, 7, 7), "valid")
    with pytest.raises(ValueError, match="odd"):
        blur.convolve(torch.zeros(1, 3, 20, 20), torch.zeros(1, 4, 7))
    with pytest.raises(ValueError, match="reflect, valid"):
        blur.convolve(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 3), "wrap")


@pytest.mark.parametrize("name", PATHS)
def test_frames_and_kernels_are_the_same_blur(name, device):
    """Averaging moved frames, and convolving with the path's kernel: two routes to one picture."""
    linear = noise_image(4, 3, 48, 40).to(device)
    path = Motion(name, length=(3.0, 9.0), steps=9).draw(streams(4, device=device))
    frames = blur.average_frames(linear, path)
    kernels = blur.convolve(linear, blur.path_to_kernel(path, 23))
    inside = (..., slice(12, -12), slice(12, -12))
    torch.testing.assert_close(frames[inside], kernels[inside], rtol=0, atol=1e-3)


def test_roll_turns_counter_clockwise_about_the_centre():
    linear = noise_image(2, 3, 9, 9)
    path = torch.tensor([[[0.0, 0.0, 90.0]], [[0.0, 0.0, -90.0]]])
    turned = blur.average_frames(linear, path)
    torch.testing.assert_close(turned[0], torch.rot90(linear[0], 1, (1, 2)), rtol=0, atol=1e-4)
    torch.testing.assert_close(turned[1], torch.rot90(linear[1], -1, (1, 2)), rtol=0, atol=1e-4)


def test_average_frames_repeats_the_border():
    linear = torch.zeros(1, 1, 8, 8)
    linear[..., :4] = 1.0
    moved = blur.average_frames(linear, torch.tensor([[[5.0, 0.0, 0.0]]]))
    torch.testing.assert_close(moved, torch.ones(1, 1, 8, 8))


def test_blur_conserves_light():
    linear = torch.zeros(2, 3, 64, 64)
    linear[..., 20:44, 20:44] = noise_image(2, 3, 24, 24)
    path = Motion("walk", length=(5.0, 12.0)).draw(streams(2))
    for blurred in (blur.convolve(linear, blur.path_to_kernel(path, 27)), blur.average_frames(linear, path)):
        torch.testing.assert_close(blurred.sum(dim=(2, 3)), linear.sum(dim=(2, 3)), rtol=1e-3, atol=0)
        assert (blurred - linear).abs().mean() > 0.01


# --- sensor and file --------------------------------------------------------------------------------------------


def test_sensor_noise_has_the_variance_it_states(device):
    levels = torch.tensor([0.0, 0.2, 0.9], device=device)
    linear = levels[:, None, None, None].expand(3, 1, 200, 300)
    noisy = blur.sensor_noise(linear, 0.01, 0.02, streams(3, device=device))
    residual = (noisy - linear).flatten(1).double()
    n = residual.shape[1]
    expected = 0.01 * levels.double() + 0.02**2
    assert ((residual.var(dim=1) / expected - 1).abs() < 5 * math.sqrt(2 / n)).all()
    assert (residual.mean(dim=1).abs() < 5 * torch.sqrt(expected / n)).all()
    assert torch.equal(blur.sensor_noise(linear, 0.0, 0.0, streams(3, device=device)), linear)
    for shot, read in ((-0.1, 0.0), (0.0, -0.1)):
        with pytest.raises(ValueError, match=">= 0"):
            blur.sensor_noise(linear, shot, read, streams(3, device=device))


def test_highlights_grow_smoothly_and_only_above_the_threshold():
    light = torch.linspace(0, 1, 101)[None, None, None].expand(1, 3, 1, 101)
    expanded = blur.expand_highlights(light, 8.0)[0, 0, 0]
    assert torch.equal(expanded[:61], light[0, 0, 0, :61])
    assert abs(expanded[-1] - 8) < 1e-5 and (expanded.diff() > 0).all()
    assert torch.equal(blur.expand_highlights(light, 1.0), light)
    with pytest.raises(ValueError, match="at least 1"):
        blur.expand_highlights(light, 0.5)


def test_quantise_rounds_to_the_nearest_of_256():
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 200.4 / 255, 1.0, 1.7])
    torch.testing.assert_close(blur.quantise(values) * 255, torch.tensor([0.0, 0, 0, 1, 200, 255, 255]))


def libjpeg(display: torch.Tensor, quality: int) -> torch.Tensor:
    """(3, h, w) through PIL's JPEG encoder and decoder."""
    buffer = io.BytesIO()
    pixels = (display * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2)
    return torch.from_numpy(np.array(Image.open(buffer).convert("RGB"))).permute(2, 0, 1).float() / 255


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean() + 1e-12))


@pytest.mark.parametrize("quality", [30, 50, 75, 95, 100])
@pytest.mark.parametrize("h, w", [(96, 96), (97, 83), (40, 25), (8, 8), (1, 9)])
def test_jpeg_is_libjpegs(quality, h, w, device):
    for name in ("coffee", "chelsea"):
        picture = photo(name)[:, 60 : 60 + h, 70 : 70 + w].float() / 255
        mine = blur.jpeg(picture[None].to(device), quality)[0].cpu()
        reference = libjpeg(picture, quality)
        assert mine.shape == picture.shape and mine.min() >= 0 and mine.max() <= 1
        # At coarse tables one coefficient on the edge of rounding, of libjpeg's integers, moves a whole block
        assert decibels(mine, reference) > (40 if quality > 30 else 38)
        assert quality > 50 or h < 9 or decibels(mine, reference) > decibels(mine, picture) + 3


def test_jpeg_on_natural_photographs(bsds500):
    for path in sorted((bsds500 / "val").iterdir())[:3]:
        picture = read_image(path)
        assert decibels(blur.jpeg(picture[None], 40)[0], libjpeg(picture, 40)) > 40


def test_jpeg_says_what_is_wrong():
    for quality in (0, 101):
        with pytest.raises(ValueError, match="1 to 100"):
            blur.jpeg(torch.zeros(1, 3, 8, 8), quality)
    with pytest.raises(ValueError, match="3 .* 1"):
        blur.jpeg(torch.zeros(1, 1, 8, 8), 50)


# --- the whole photograph ---------------------------------------------------------------------------------------


def test_a_still_camera_gives_the_sharp_picture():
    sharp = blur.quantise(noise_image(2, 3, 20, 20))
    still = Motion(length=(0.0, 0.0))
    for response in RESPONSES:
        y0, x = blur.photograph(sharp, still, Camera(response), streams(2))
        torch.testing.assert_close(y0, sharp, rtol=0, atol=1e-6)
        torch.testing.assert_close(x, sharp, rtol=0, atol=1.01 / 255)


def test_photograph_follows_its_chain(device):
    """Light is averaged before the response, not the display values."""
    sharp = blur.quantise(noise_image(2, 3, 32, 32)).to(device)
    motion = Motion("linear", length=(6.0, 6.0), angle=0.0)
    y0, x = blur.photograph(sharp, motion, Camera("gamma"), streams(2), margin=8)
    assert y0.shape == x.shape == (2, 3, 16, 16)
    torch.testing.assert_close(y0, sharp[..., 8:-8, 8:-8], rtol=0, atol=1e-6)
    kernel = blur.path_to_kernel(motion.draw(streams(2)), 15).to(device)
    expected = blur.convolve(sharp**2.2, kernel)[..., 8:-8, 8:-8] ** (1 / 2.2)
    torch.testing.assert_close(x, expected, rtol=0, atol=1.01 / 255)
    naive = blur.convolve(sharp, kernel)[..., 8:-8, 8:-8]
    assert (x - naive).abs().mean() > 0.02


def test_kernels_are_made_on_the_cpu(monkeypatch, stand_in):
    """Its order of adding is fixed, so that the same index gives the same photograph on a GPU, each time."""
    seen, make = [], blur.path_to_kernel
    monkeypatch.setattr(blur, "path_to_kernel", lambda path, n: seen.append(path.device.type) or make(path, n))
    with stand_in():
        _, x = blur.photograph(torch.zeros(2, 3, 24, 24, device="cuda"), Motion("linear"), Camera(), streams(2))
    assert seen == ["cpu"] and x.device.type == "cuda"


def test_photographs_can_be_taken_again(device):
    sharp, motion = blur.quantise(noise_image(8, 3, 48, 48)).to(device), Motion("walk", length=(5.0, 15.0))
    first, *others = (blur.photograph(sharp, motion, Camera(), streams(8))[1] for _ in range(4))
    assert all(torch.equal(first, other) for other in others)


def test_each_part_of_the_camera_has_its_effect():
    sharp = blur.quantise(noise_image(2, 3, 24, 24))
    motion = Motion("linear", length=(5.0, 5.0), angle=0.0)
    clean = blur.photograph(sharp, motion, Camera(), streams(2))
    assert all(torch.equal(image, blur.quantise(image)) for image in clean)
    dark = blur.photograph(sharp, motion, Camera(exposure=0.3), streams(2))
    assert dark[0].mean() < clean[0].mean() and dark[1].mean() < clean[1].mean()
    noisy = blur.photograph(sharp, motion, Camera(shot=0.01), streams(2))
    assert torch.equal(noisy[0], clean[0]) and 0.005 < (noisy[1] - clean[1]).std() < 0.2
    squeezed = blur.photograph(sharp, motion, Camera(jpeg_quality=20), streams(2))
    assert torch.equal(squeezed[0], clean[0])
    torch.testing.assert_close(squeezed[1], blur.jpeg(clean[1], 20))
    rolled = blur.photograph(
        sharp, Motion("linear", length=(5.0, 5.0), angle=0.0, roll=(9.0, 9.0)), Camera(), streams(2)
    )
    assert (rolled[1] - clean[1])[..., :4, :].abs().mean() > 0.01


def test_a_lamp_leaves_a_bright_streak():
    """Its light was many times what the file stores; blurred, it still clips."""
    night = torch.full((1, 3, 33, 33), 0.1)
    night[..., 15:18, 15:18] = 1.0
    motion = Motion("linear", length=(12.0, 12.0), angle=0.0)
    _, flat = blur.photograph(night, motion, Camera(), streams(1))
    _, streak = blur.photograph(night, motion, Camera(highlights=12.0), streams(1))
    assert flat[0, 0, 16].max() < 0.6 and (streak[0, 0, 16] > 0.99).sum() >= 9


def test_unknown_response_lists_the_known():
    with pytest.raises(ValueError, match="film.*gamma, measured, none"):
        Camera("film")

"""Restoring in tiles: the same picture as in one piece, whatever the tiles, in bounded memory."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinymsg.model import pretrained, pretrained_names, save_model
from tinymsg.restoring import tiles
from tinymsg.restoring.tiles import choose_tile, margin, reach, restore_large
from tinymsg.sample import SAMPLERS, Setting, restore

CPU = torch.device("cpu")
GRAY_LEVEL = 2 / 255  # of 8 bits, in [-1, 1]


@pytest.fixture
def local_model(tiny_model):
    return lambda **changes: tiny_model(**({"widths": (16, 16), "scales": (1,)} | changes))


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- tiles leave no trace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_tiles_equal_the_whole_picture(local_model, name):
    """Borders, sides that are no multiples, averaged samples, several bands of noise."""
    model, setting, x = local_model(), Setting(name, steps=3, samples=2), picture(70, 91)
    whole, parts = (restore_large(model, x, setting, seed=3, tile=tile) for tile in (0, 40))
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"how": "concat"},
        {"how": "both", "inject": "structure", "target": "rgb", "widths": (16, 16, 16), "scales": (1, 2)},
        {"scales": (), "predict": "eps", "residual": False},
        {"kind": "regression"},
        {"blocks": 2},
        {"channels": 1, "predict": "v"},
        {"fold": 2, "widths": (16, 16, 16)},
        {"fold": 4, "widths": (16, 16, 16), "scales": (2, 3, 4)},
        {"fold": 2, "how": "concat", "scales": (2,)},
    ],
    ids=str,
)
def test_tiles_equal_the_whole_picture_for_every_network(local_model, changes):
    model = local_model(**changes)
    x = picture(24, 300)[: model.config.channels]
    whole, parts = (restore_large(model, x, Setting(steps=2), seed=3, tile=tile) for tile in (0, 100))
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (90, 5), (33, 34)])
def test_small_and_thin_pictures(local_model, size):
    model, x = local_model(), picture(*size)
    whole, parts = (restore_large(model, x, Setting(steps=2), seed=0, tile=tile) for tile in (0, 8))
    assert whole.shape == x.shape and whole.abs().max() <= 1
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_whole_picture_is_what_restore_makes(local_model, monkeypatch, name):
    """Both see the same noise here: none."""
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    model, x, setting = local_model(scales=(1,)), picture(70, 45), Setting(name, steps=4)
    expected = restore(model, x[None], setting)[0]
    torch.testing.assert_close(restore_large(model, x, setting, seed=0, tile=0), expected, rtol=0, atol=2e-5)


def test_a_chain_begins_at_the_regressions_answer_whatever_the_tiles(local_model, monkeypatch, tmp_path):
    """As `restore` begins, border included, and on both ways to the end the progress reaches its end."""
    save_model(local_model(kind="regression", scales=()), tmp_path / "first.safetensors")
    model, x, said = local_model(scales=(1,)), picture(70, 45), []
    setting = Setting(steps=2, max_noise=0.3, start=str(tmp_path / "first.safetensors"))
    parts = restore_large(model, x, setting, seed=0, tile=24, progress=lambda *share: said.append(share))
    whole = restore_large(model, x, setting, seed=0, tile=0)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)
    shares = [done / total for done, total in said]
    assert shares == sorted(shares) and shares[-1] == 1 and shares.count(1) == 1
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    expected = restore(model, x[None], setting)[0]
    torch.testing.assert_close(restore_large(model, x, setting, seed=0, tile=0), expected, rtol=0, atol=2e-5)
    assert not torch.allclose(expected, restore(model, x[None], replace(setting, start=None))[0], atol=1e-3)


@pytest.mark.parametrize("weights", pretrained_names())
def test_shipped_weights_leave_no_seam(weights):
    """At most one gray level between tiles and the whole in 99.99 % of the values, in the precision of the machine."""
    from skimage.data import astronaut

    model = pretrained(weights)
    x = torch.from_numpy(astronaut())[:96, :320].permute(2, 0, 1) / 127.5 - 1
    whole, parts = (restore_large(model, x, Setting(steps=2), seed=1, tile=tile) for tile in (0, 160))
    assert ((whole - parts).abs() <= GRAY_LEVEL).float().mean() >= 0.9999


# --- how far the network sees -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scales": ()},
        {"how": "concat", "widths": (16, 16, 16), "scales": (2,)},
        {"inject": "structure", "blocks": 2},
        {"widths": (16, 16, 16, 16), "scales": (1, 3)},
        {"fold": 4, "scales": (2, 3)},
        {"fold": 2, "how": "concat", "scales": (2,)},
    ],
    ids=str,
)
def test_the_reach_is_the_receptive_field(local_model, changes):
    """By the gradient of a cell of the coarsest grid: nothing beyond the reach, and something not far within it."""
    model = local_model(**changes)
    far, cell = reach(model), model.multiple
    start = tiles._round_up(far, cell) + cell
    x = torch.zeros(1, 3, cell, 2 * start + cell) + 0.1
    z = torch.zeros_like(x) + 0.2
    for part in (x, z):
        part.requires_grad_()
    denoise = model.denoiser(x)
    monitored = denoise(z, torch.tensor([0.5]))[..., start : start + cell]
    monitored.sum().backward()
    assert x.grad is not None and z.grad is not None
    seen = ((x.grad != 0) | (z.grad != 0)).any(dim=1).any(dim=1)[0].nonzero()
    left, right = start - int(seen.min()), int(seen.max()) + 1 - start - cell
    assert far - 2 * cell <= max(left, right) <= margin(model)
    assert margin(model) % cell == 0 and far <= margin(model) < far + cell


# --- noise --------------------------------------------------------------------------------------------------------


def test_noise_depends_on_the_seed_and_on_nothing_else(local_model):
    model, x = local_model(scales=()), picture(40, 60)
    one, same, other = (restore_large(model, x, Setting(steps=3), seed, tile=0) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    restore_large(model, x, Setting(steps=1), seed=-(2**70))  # any integer


def test_bands_steps_and_samples_have_noise_of_their_own(local_model, monkeypatch):
    model, drawn, draw = local_model(scales=()), [], torch.randn

    def record(shape, **options):
        drawn.append(draw(shape, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", record)
    restore_large(model, picture(2 * tiles.BAND, 16), Setting(steps=3, samples=2), seed=0, tile=0)
    assert len(drawn) == 2 * 3 * 2  # bands, levels, samples
    values = torch.stack([part.flatten() for part in drawn])
    assert len(values[:, 0].unique()) == len(drawn)
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02


# --- memory -------------------------------------------------------------------------------------------------------


def test_large_pictures_are_kept_in_float16(local_model, monkeypatch):
    model, x, setting = local_model(), picture(64, 80), Setting("dpm_solver", steps=4, samples=2)
    expected = restore_large(model, x, setting, seed=0)
    monkeypatch.setattr(tiles, "LARGE", 0)
    found = restore_large(model, x.half(), setting, seed=0)
    assert expected.dtype == torch.float32 and found.dtype == torch.float16
    assert (found - expected).abs().mean() < GRAY_LEVEL / 5


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no file that is mapped")
def test_a_workspace_holds_the_state_and_nothing_is_left_in_it(local_model, tmp_path):
    model, x = local_model(), picture(64, 80)
    seen = []

    def stop(done: int, total: int) -> None:
        maps = Path("/proc/self/maps")
        seen.append(str(tmp_path) in maps.read_text() if maps.exists() else True)
        raise KeyboardInterrupt

    expected = restore_large(model, x, Setting(steps=2), seed=0)
    assert torch.equal(restore_large(model, x, Setting(steps=2), seed=0, workspace=tmp_path), expected)
    with pytest.raises(KeyboardInterrupt):
        restore_large(model, x, Setting(steps=2), seed=0, workspace=tmp_path, progress=stop)
    assert seen == [True] and not list(tmp_path.iterdir())


def test_a_state_that_fills_the_memory_goes_to_a_file(local_model, monkeypatch, tmp_path):
    mapped, from_file = [], torch.from_file
    monkeypatch.setattr(tiles.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch, "from_file", lambda *args, **options: mapped.append(1) or from_file(*args, **options))
    model = local_model()
    for free, expected in ((2**40, False), (10**5, True)):
        monkeypatch.setattr(tiles, "free_memory", lambda device, free=free: free)
        restore_large(model, picture(64, 80), Setting(steps=1), seed=0, tile=0)
        assert bool(mapped) == (expected and os.name != "nt")


def test_tiles_are_halved_when_memory_runs_out(local_model, monkeypatch):
    model, x = local_model(), picture(24, 200)
    expected = restore_large(model, x, Setting(steps=2), seed=0, tile=0)
    seen, forward = [], model.unet.forward

    def small_machine(z_t, *rest):
        if z_t.shape[-1] > 130:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(z_t, *rest)

    monkeypatch.setattr(model.unet, "forward", small_machine)
    found = restore_large(model, x, Setting(steps=2), seed=0, tile=0, progress=lambda *step: seen.append(step))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    done, total = seen[-1]
    assert done == total > 2 and len(seen) == total


def test_no_memory_at_all_is_one_sentence(local_model, monkeypatch):
    def nothing_left(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model, x = local_model(), picture(32, 300)
    monkeypatch.setattr(model.unet, "forward", nothing_left)
    with pytest.raises(MemoryError, match="cpu.*64"):
        restore_large(model, x, Setting(steps=1), seed=0)
    monkeypatch.setattr(tiles, "free_memory", lambda device: 10**5)
    with pytest.raises(MemoryError, match="cpu.*64.*free"):
        choose_tile(model, 300, 300, CPU)


def test_other_errors_stay_what_they_are(local_model, monkeypatch):
    def broken(*_):
        raise RuntimeError("a shape is wrong")

    model = local_model()
    monkeypatch.setattr(model.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="shape"):
        restore_large(model, picture(16, 16), Setting(steps=1), seed=0)


def test_the_tile_follows_the_free_memory(local_model, monkeypatch):
    model = local_model()
    sides = []
    for free in (6 * 10**7, 2 * 10**8, 10**12, None):
        monkeypatch.setattr(tiles, "free_memory", lambda device, free=free: free)
        sides.append(choose_tile(model, 20_000, 20_000, CPU))
        assert choose_tile(model, 30, 40, CPU) == 40  # what fits is one tile
    assert tiles.SMALLEST <= sides[0] < sides[1] < sides[2] == sides[3] <= tiles.LARGEST
    assert (sides[3] + 2 * margin(model)) ** 2 * tiles.tile_bytes(model, CPU) <= tiles.WORKING_SET
    assert choose_tile(model, 20_000, 20_000, torch.device("meta")) == tiles.LARGEST  # a GPU that does not tell


def test_guidance_of_one_tile_runs_once(local_model):
    model, calls = local_model(), []
    model.guidance.register_forward_hook(lambda *_: calls.append(1))
    restore_large(model, picture(32, 32), Setting(steps=5, samples=2), seed=0, tile=0)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "x, tile, message",
    [
        (torch.zeros(1, 3, 8, 8), 0, "shape"),
        (torch.zeros(3, 0, 8), 0, "shape"),
        (torch.zeros(1, 8, 8), 0, "shape"),
        (torch.zeros(3, 8, 8), -1, "tile"),
        (torch.full((3, 8, 8), 2.0), 0, r"\[-1, 1\]"),
        (torch.full((3, 8, 8), torch.nan), 0, "finite"),
    ],
)
def test_wrong_input_says_what_was_expected(local_model, x, tile, message):
    with pytest.raises(ValueError, match=message):
        restore_large(local_model(), x, Setting(), seed=0, tile=tile)


def test_float16_pictures_and_gpus(local_model, device):
    model, x = local_model().to(device), picture(96, 80).half()
    found = restore_large(model, x, Setting(steps=2), seed=0, tile=48, device=device)
    expected = restore_large(model.cpu(), x.float(), Setting(steps=2), seed=0, tile=48)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)

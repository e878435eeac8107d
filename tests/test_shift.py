"""Shift of activations between domains, and sensitivity."""

import json

import pytest
import torch

from tinymsg import shift
from tinymsg.__main__ import main
from tinymsg.evaluate import Setting
from tinymsg.model import save_model
from tinymsg.shift import activations, domain_shift, mmd, sensitivity, study_shift


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_mmd_closed_forms():
    a, b = normal(400, 3, 0), normal(400, 3, 1)
    assert abs(mmd(a, b, 1.5)) < 0.01, "two samples of one law"
    # Two clusters, far apart and tight: the kernel is 1 within and 0 between
    assert mmd(1e-4 * a, 1e-4 * b + 100, 1.0) == pytest.approx(2.0, abs=1e-6)
    # Gaussians N(0, 1) and N(mu, 1): E k = exp(-mu^2 / (2 (w^2 + 2))) w / sqrt(w^2 + 2)
    mu, width = 1.0, 1.0
    x, y = normal(2500, 1, 2), normal(2500, 1, 3) + mu
    scale = width / (width**2 + 2) ** 0.5
    expected = 2 * scale * (1 - torch.exp(torch.tensor(-(mu**2) / (2 * (width**2 + 2)))).item())
    assert mmd(x, y, width) == pytest.approx(expected, rel=0.15)


def test_domain_shift_grows_with_the_shift_and_knows_none():
    reference, held_out = normal(120, 6, 0), normal(120, 6, 1)
    found = [domain_shift(reference, normal(120, 6, 2) + move, held_out)["shift"]["mean"] for move in (0.0, 0.5, 1.5)]
    assert found[0] < found[1] < found[2]
    none = domain_shift(reference, reference + 3, held_out)["none"]
    assert none["low"] <= 0.02 and none["low"] <= none["mean"] <= none["high"]
    units = torch.tensor([1.0, 10.0, 0.1, 1.0, 5.0, 2.0])  # layers of any scale can be compared
    same = domain_shift(reference * units, (normal(120, 6, 2) + 0.5) * units, held_out * units)["shift"]["mean"]
    assert same == pytest.approx(found[1], rel=1e-3, abs=1e-4)


def test_the_mean_of_a_shift_is_no_median(monkeypatch):
    values = iter([0.0, 1.0, 0.0, 1.0, 9.0, 1.0])  # of other and held-out halves in turn
    monkeypatch.setattr(shift, "mmd", lambda *_: next(values))
    found = domain_shift(*(normal(8, 2, seed) for seed in range(3)), draws=3)
    assert (found["shift"]["mean"], found["none"]["mean"]) == (3.0, 1.0)


def test_activations_of_both_branches(tiny_model, images, device):
    model = tiny_model(scales=(1, 3)).to(device)
    _, x = (image.to(device) for image in images(3))
    seen = activations(model, x)
    assert list(seen) == ["input 1", "input 2", "input 3", "guidance 1", "guidance 3"]
    assert all(value.shape == (3, 2 * (8 if "guidance" in name else 16)) for name, value in seen.items())
    again = activations(model, x)
    assert all(torch.equal(again[name], seen[name]) for name in seen)
    hidden, _ = model.guidance.nets[0](
        torch.nn.functional.interpolate(
            (x * torch.tensor([0.299, 0.587, 0.114], device=device)[:, None, None]).sum(1, keepdim=True),
            size=(8, 8),
            mode="bilinear",
            antialias=True,
        )
    )
    torch.testing.assert_close(seen["guidance 1"][:, :8], hidden.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)
    assert not model.unet.down[1][-1]._forward_hooks, "hooks are taken off again"
    assert list(activations(tiny_model(scales=()), x.cpu())) == ["input 1", "input 2", "input 3"]


def test_sensitivity_of_known_maps(tiny_model, images):
    """A network whose output is zero passes the blurry image on: changes go through as they are."""
    _, x = images()
    x = 0.5 * x  # away from the borders, where clipping would hide changes
    model = tiny_model()
    setting = Setting(steps=2, max_noise=0.9, samples=1)
    assert (sensitivity(model, x, setting) > 0).all()
    with torch.no_grad():
        model.unet.conv_out.weight.zero_()
        model.unet.conv_out.bias.zero_()
    torch.testing.assert_close(sensitivity(model, x, setting), torch.ones(2), rtol=1e-2, atol=0)


def test_the_study_and_the_command(tiny_model, images, tmp_path, capsys):
    model = tiny_model()
    sets = {name: images(6)[1].roll(i, -1) for i, name in enumerate(("home", "away"))}
    table = study_shift({"guided": model}, sets, images(6)[0], Setting(steps=1, samples=1), batch=4)
    assert set(table["shift"]["guided"]["guidance 2"]) == {"away"}
    assert set(table["sensitivity"]["guided"]) == {"home", "away"}

    weights, out = tmp_path / "w.safetensors", tmp_path / "shift.json"
    save_model(model, weights)
    arguments = [
        "shift",
        "--weights",
        f"guided={weights}",
        "--count",
        "4",
        "--size",
        "32",
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert main(arguments) == 0
    written = json.loads(out.read_text())
    assert written["reference"] == "gopro_like" and "camera_shake" in written["shift"]["guided"]["input 1"]
    assert len(written["weights"]["guided"]["sha256"]) == 64
    assert "guided, guidance 1" in capsys.readouterr().out
    assert main([*arguments, "--content", "nowhere"]) == 2

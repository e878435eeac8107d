"""Quality against evaluations; chains that begin from an estimate."""

import json

import pytest
import torch

from tinymsg.cli import main
from tinymsg.evaluate import domain_pairs
from tinymsg.model import build_model, plain_twin, save_model
from tinymsg.sample import SAMPLERS, Setting, restore
from tinymsg.schedule import max_noise_for
from tinymsg.studies.steps import fewest, step_curves


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("residual", [True, False])
def test_a_perfect_denoiser_arrives_from_any_start(tiny_model, images, monkeypatch, sampler, residual):
    model = tiny_model(residual=residual)
    y0, x = (image.clamp(-0.9, 0.9) for image in images())
    monkeypatch.setattr(model, "denoiser", lambda blurry: lambda z_t, noise_level: model.encode(y0, x))
    generator = torch.Generator().manual_seed(0)
    out = restore(model, x, Setting(sampler, 4, 0.5), generator, start=x)
    torch.testing.assert_close(out, y0, atol=1e-6, rtol=0)


def test_a_start_with_little_noise_stays_near_it(tiny_model, images, monkeypatch):
    """A denoiser that takes what it is given for the image leaves the start as it is, but for the noise put on it."""
    model = tiny_model(residual=False)
    start, x = (0.5 * image for image in images())
    monkeypatch.setattr(model, "denoiser", lambda x: lambda z_t, noise_level: z_t / noise_level[:, None, None, None])
    far = []
    for alpha_bar_T in (0.9999, 0.9):
        setting = Setting("ddim", 1, max_noise_for(1, alpha_bar_T))
        out = restore(model, x, setting, torch.Generator().manual_seed(0), start=start)
        far.append(float((out - start).std()))
    assert far[0] < 0.02 < far[1]


def test_wrong_starts_are_refused(tiny_model, images):
    _, x = images()
    with pytest.raises(ValueError, match="start is an estimate of x's shape"):
        restore(tiny_model(), x, start=x[:, :, :8])
    with pytest.raises(ValueError, match="for diffusion models only"):
        restore(tiny_model(kind="regression", scales=()), x, start=x)


def test_curves_have_every_combination_and_are_repeatable(tiny_model):
    arguments = (tiny_model(), domain_pairs("one_kernel", "photos", 4, 7), 4, 16, {"blurry": lambda x: x}, (1, 3))
    rows = step_curves(*arguments)
    assert [(r["start"], r["sampler"], r["evaluations"]) for r in rows] == [
        (start, sampler, n) for start in ("noise", "blurry") for sampler in SAMPLERS for n in (1, 3)
    ]
    assert all(r["seconds"] > 0 and r["psnr"]["low"] <= r["psnr"]["mean"] <= r["psnr"]["high"] for r in rows)
    assert [r["psnr"] for r in step_curves(*arguments)] == [r["psnr"] for r in rows]


def test_fewest():
    def row(n, psnr, spectral):
        scores = {"psnr": {"mean": psnr}, "spectral": {"mean": spectral}}
        return {"sampler": "ddim", "start": "noise", "evaluations": n} | scores

    rows = [row(250, 25.0, 0.10), row(1, 26.0, 0.30), row(4, 24.95, 0.101), row(2, 24.0, 0.10)]
    assert fewest(rows, "ddim", "noise") == 4


def test_the_command(tmp_path, capsys, tiny_recipe):
    network = tiny_recipe().network
    for name, config in (("guided", network), ("regression", plain_twin(network, "regression"))):
        save_model(build_model(config), tmp_path / f"{name}.safetensors")
    arguments = f"steps --weights {tmp_path}/guided.safetensors --regression {tmp_path}/regression.safetensors"
    arguments += f" --content photos --count 2 --size 16 --evaluations 1 2 --device cpu --out {tmp_path}/steps.json"
    assert main(arguments.split()) == 0
    rows = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert len(rows) == len(SAMPLERS) * 3 * 2 and {r["start"] for r in rows} == {"noise", "blurry", "regression"}
    assert "as good as the longest chain from" in capsys.readouterr().out
    assert main([*arguments.split(), "--regression", f"{tmp_path}/guided.safetensors"]) == 2
    assert "--regression a regression model" in capsys.readouterr().err

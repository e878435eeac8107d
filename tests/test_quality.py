"""Quality per second: its networks, its clock, what it keeps. Nothing is timed here."""

import json
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

from tinymsg.unet import PixelNorm

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("quality", "bench", "peers", "loader", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import quality

    return quality


@pytest.fixture
def small(quality, monkeypatch, tiny_recipe):
    """The benchmark with crops of 16 pixels and networks of some thousand parameters, in fp32."""
    recipe = tiny_recipe(scales=(), warmup=4, lr=0.01, ema=0.998)
    monkeypatch.setattr(quality, "RECIPE", recipe)
    monkeypatch.setattr(quality, "ours", lambda kind, fold, _: quality.build_model(recipe.change(kind=kind).network))
    monkeypatch.setattr(quality, "SIDE", 16)
    return quality


class _Pairs:
    name = "noise"

    def crops(self, index, size):
        generator = torch.Generator().manual_seed(int(index[0]))
        return tuple(torch.rand(len(index), 3, size, size, generator=generator) * 2 - 1 for _ in range(2))


def test_seconds_of_making_pairs_do_not_count(small, monkeypatch):
    """A clock that goes on by 1 at every look and by 100 with every batch: each step lasts a second."""
    now = [0.0]

    class Slow(_Pairs):
        def crops(self, index, size):
            now[0] += 100
            return super().crops(index, size)

    def clock(device):
        now[0] += 1
        return now[0]

    monkeypatch.setattr(small, "seconds_of", clock)
    state = small.train(small.paper("regression"), Slow(), 3.0, 0.01, torch.device("cpu"))
    assert (state.step, state.spent) == (3, 3.0)


def test_the_learning_rate_rises_by_steps_and_falls_by_time(small):
    state = small.TimedState(small.paper("diffusion"), 60.0, 0.01, torch.device("cpu"))
    rates = []
    for state.step, state.spent in ((0, 0.0), (1, 0.0), (3, 0.0), (50, 30.0), (99, 60.0)):
        rates.append(state.learning_rate())
    assert rates == pytest.approx([0.0025, 0.005, 0.01, 0.005, 0.0])


@pytest.mark.parametrize("name", ["before", "paper", "fold 2", "fold 4", "nafnet"])
def test_every_network_learns_and_is_scored(small, monkeypatch, name):
    ticks = count()
    monkeypatch.setattr(small, "seconds_of", lambda device: next(ticks))
    monkeypatch.setattr(small, "METRICS", ("psnr",))
    monkeypatch.setattr(small, "nafnet", _tiny_nafnet(small))
    for kind in small.NETWORKS[name].kinds:
        build = small.nafnet if name == "nafnet" else small.NETWORKS[name].build
        state = small.train(build(kind), _Pairs(), 6, 0.01, torch.device("cpu"))
        new, old = (list(model.unet.parameters()) for model in (state.model, build(kind)))
        assert all((a != b).any() for a, b in zip(new, old, strict=True) if b.abs().sum() > 0 and b.ndim == 4)
        y0, x = _Pairs().crops(torch.arange(3), 16)
        assert small.score(state.ema_model, y0, x)["psnr"] != small.score(None, y0, x)["psnr"]


def _tiny_nafnet(quality):
    def build(kind):
        model = quality.ours(kind, 1, ())
        torch.manual_seed(0)
        model.add_module("unet", quality.NAFNet(8, down=(1, 2), up=(1, 1)))
        return model

    return build


def _changed(network, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Whether each pixel's answer changes with the picture's last pixel; all weights random."""
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / max(weight[0].numel(), 1) ** 0.5
    other = x.clone()
    other[..., -1, -1] += 1
    with torch.no_grad():
        answers = [network(torch.zeros_like(x), image, level) for image in (x, other)]
    return (answers[0] != answers[1]).any(dim=1)


def test_only_the_old_network_and_nafnet_look_at_the_whole_picture(quality):
    x, level = torch.rand(1, 3, 96, 96), torch.full((1,), 0.5)
    narrow = quality.RECIPE.change(widths=(16, 16)).network
    old, new = quality.with_group_norm(quality.build_model(narrow)).unet, quality.build_model(narrow).unet
    assert _changed(quality.NAFNet(8, down=(1,), up=(1,)), x, level)[0, 0, 0]
    assert _changed(old, x, level)[0, 0, 0] and not _changed(new, x, level)[0, 0, 0]
    assert not any(isinstance(module, PixelNorm) for module in old.modules())


def test_nafnet_sees_the_blurry_picture_alone_and_starts_as_no_change(quality):
    network, (y_t, x) = quality.NAFNet(8, down=(1, 1), up=(1, 1)), torch.rand(2, 1, 3, 16, 16)
    assert not network(y_t, x, torch.ones(1)).any()
    torch.nn.init.normal_(network.last.weight)
    torch.testing.assert_close(network(y_t, x, torch.ones(1)), network(x, x, torch.zeros(1)), rtol=0, atol=0)


SCORES = {"psnr": {"mean": 25.0, "low": 24.0, "high": 26.0}, "lpips": {"mean": 0.3, "low": 0.2, "high": 0.4}}


def _restoring(*arguments) -> dict:
    row = {"seconds": 1.8432, "ratio": 2.0, "low": 1.9, "high": 2.1, "parameters_M": 2.62, "gflop": 1500.0}
    names = ("before", "paper", "fold 2", "fold 4", "nafnet")
    return {
        "rounds": 1,
        "missing": ["diffusers", "denoising_diffusion_pytorch"],
        "rows": dict.fromkeys(names, row | {"at_equal_flops": 1.5}),
    }


def _run(quality, monkeypatch, out: Path, *options: str) -> list[tuple[str, float]]:
    """main() without training: (kind, seconds) of what it would have trained."""
    trained = []

    def train(model, pairs, seconds, lr, device):
        trained.append((model.config.kind, seconds))
        state = quality.TimedState(model, seconds, lr, device)
        state.step, state.spent = 4, seconds
        return state

    for name in ("before", "paper", "fold 2", "fold 4"):
        monkeypatch.setitem(quality.NETWORKS, name, quality.Network(quality.paper, quality.NETWORKS[name].kinds))
    monkeypatch.setitem(quality.NETWORKS, "nafnet", quality.Network(quality.paper, ("regression",)))
    monkeypatch.setattr(quality, "train", train)
    monkeypatch.setattr(quality, "score", lambda *_: SCORES)
    monkeypatch.setattr(quality, "restoring", _restoring)
    monkeypatch.setattr(quality, "find_spec", lambda name: None)
    monkeypatch.setattr(quality, "available", lambda metrics: (metrics, {}))
    monkeypatch.setattr(quality, "contents_of", lambda names: quality.make_contents("photos", 1, 0))
    threads = torch.get_num_threads()
    arguments = ["--device", "cpu", "--threads", str(threads), "--crops", "2", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", ["quality.py", *arguments])
    quality.main()
    return trained


def test_a_run_goes_on_where_it_was_interrupted(small, monkeypatch, tmp_path):
    first = _run(small, monkeypatch, tmp_path, "--seconds", "2", "1", "--networks", "fold 2", "nafnet")
    assert first == [(kind, s) for s in (1, 2) for kind in ("regression", "diffusion", "regression")]
    results = json.loads((tmp_path / "quality.json").read_text())
    results["rows"].pop(1)
    (tmp_path / "quality.json").write_text(json.dumps(results))
    again = _run(small, monkeypatch, tmp_path, "--seconds", "1", "--networks", "fold 2", "nafnet", "paper")
    assert again == [("diffusion", 1), ("regression", 1)]
    text = (tmp_path / "quality.md").read_text()
    assert (
        "| fold 2, diffusion | 0.500 | 5 | 10.00 | 25.00, 0.300 | 25.00, 0.300 |" in text
    )  # 5 evaluations, 2 s a Mpix each
    assert "| paper, regression | 0.250 | 1 | 2.00 | 25.00, 0.300 | - |" in text
    assert (tmp_path / "quality.png").stat().st_size > 3000


def test_results_of_other_settings_are_not_added_to(small, monkeypatch, tmp_path, capsys):
    _run(small, monkeypatch, tmp_path, "--seconds", "1", "--networks", "paper")
    before = (tmp_path / "quality.json").read_text()
    with pytest.raises(SystemExit):
        _run(small, monkeypatch, tmp_path, "--seconds", "1", "--networks", "nafnet", "--domain", "everyday")
    assert "another" in capsys.readouterr().err and (tmp_path / "quality.json").read_text() == before

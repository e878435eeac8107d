"""The sampler's setting is chosen on pictures that are in no test set, cell by cell, and the search resumes."""

import json
import sys
from dataclasses import replace

import miniatures
import pytest
import torch

from tinymsg.cli import main
from tinymsg.cli.sources import open_data
from tinymsg.cli.testsets import validation_crops
from tinymsg.data import SyntheticPairs, scene_contents
from tinymsg.evaluate import VALIDATION_SEED, measure
from tinymsg.model import save_model
from tinymsg.paper import choose
from tinymsg.paper.choose import HeldOut, best_cell, choose_cell, choose_setting, grid_search
from tinymsg.paper.protocol import Ledger, Row
from tinymsg.sample import Setting, restore
from tinymsg.schedule import linear

CPU = torch.device("cpu")
GRID = {"steps": (1, 3), "max_noise": (0.5, 0.9)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniatures.make_gopro(tmp_path_factory.mktemp("data"), train=6)


@pytest.fixture
def row(tiny_model) -> Row:
    return Row("tiny", tiny_model(), "0" * 64, Setting("ddim", samples=3))


@pytest.fixture
def pairs(images) -> HeldOut:
    return HeldOut(*images(2, 3, 16, 16), "two pairs")


def test_grid_search(tiny_model):
    pairs = SyntheticPairs(scene_contents(8), "gopro_like", seed=3)
    model = tiny_model(scales=())
    lines = []
    cells = grid_search(model, pairs, 2, 16, steps=(1, 3), max_noise=(0.2, 0.9), progress=lines.append)
    assert [(c["steps"], c["max_noise"]) for c in cells] == [(1, 0.2), (1, 0.9), (3, 0.2), (3, 0.9)]
    assert [c["alpha_bar_T"] for c in cells] == pytest.approx(
        [float(linear(n, m).alpha_bar[-1]) for n in (1, 3) for m in (0.2, 0.9)]
    )
    assert all(c["seconds"] > 0 for c in cells) and len(lines) == 4
    y0, x = pairs.crops(torch.arange(2), 16)
    output = restore(model, x, Setting(steps=3, max_noise=0.2), torch.Generator().manual_seed(VALIDATION_SEED))
    assert cells[2]["psnr"] == pytest.approx(sum(measure(output, y0, ("psnr",))["psnr"]) / 2, abs=1e-3)


def test_best_and_chosen_cell():
    cells = [
        {"psnr": 30.0, "spectral": 0.9},
        {"psnr": 29.7, "spectral": 0.3},
        {"psnr": 29.6, "spectral": 0.4},
        {"psnr": 25.0, "spectral": 0.1},
    ]
    assert best_cell(cells) is cells[0] and best_cell(cells, "spectral") is cells[3]
    assert choose_cell(cells) is cells[1] and choose_cell(cells, slack=0.1) is cells[0]
    assert choose_cell(cells, slack=9.0) is cells[3]


def test_the_grid_sees_what_a_training_holds_out(root, tiny_recipe):
    """Of the training split: no test set's pictures choose the setting."""
    pairs = validation_crops(2, 16, root, "blur", False, CPU)
    folder = str(root / "GOPRO_Large/train")
    _, identity, validation = open_data(tiny_recipe(), CPU, folder, validate=True, pictures=2, size=16)
    assert validation is not None and pairs.x.shape == (2, 3, 16, 16)
    assert torch.equal(pairs.y0, validation.pictures[0]) and torch.equal(pairs.x, validation.pictures[1])
    assert identity["held_out"] in pairs.name
    with pytest.raises(ValueError, match="gopro.py"):
        validation_crops(2, 16, root / "nowhere", "blur", False, CPU)


def test_the_search_is_frozen_resumes_and_never_mixes(row, pairs, tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "scores.jsonl")
    setting, cells = choose_setting(row, pairs, "compromise", ledger, **GRID)
    best = choose_cell(cells)
    assert setting == Setting("ddim", best["steps"], best["max_noise"], samples=3)
    assert [(c["steps"], c["max_noise"]) for c in cells] == [(1, 0.5), (1, 0.9), (3, 0.5), (3, 0.9)]
    by_psnr, _ = choose_setting(row, pairs, "psnr", ledger, **GRID)
    assert max(cells, key=lambda c: c["psnr"])["steps"] == by_psnr.steps
    # A search that was cut short goes on: what the file holds is not computed again
    computed, real = [], choose.grid_search
    monkeypatch.setattr(choose, "grid_search", lambda *a, **k: (computed.append(a[4:6]), real(*a, **k))[1])
    short = tmp_path / "short.jsonl"
    short.write_text("".join(ledger.path.read_text().splitlines(keepends=True)[:3]))
    again, same = choose_setting(row, pairs, "compromise", Ledger(short), **GRID)
    assert again == setting and same == cells and computed == [((3,), (0.9,))]
    for other_row, other_pairs in (
        (replace(row, weights="1" * 64), pairs),
        (replace(row, setting=Setting("ancestral")), pairs),
        (row, HeldOut(pairs.y0, -pairs.x, pairs.name)),
    ):
        computed.clear()
        choose_setting(other_row, other_pairs, "compromise", ledger, **GRID)
        assert len(computed) == 4


def test_what_cannot_be_sampled_or_measured_is_said(row, pairs, tmp_path):
    ledger, said = Ledger(tmp_path / "scores.jsonl"), []
    setting, cells = choose_setting(row, pairs, "psnr", ledger, (1, 500), (0.5,), said.append)
    assert setting.steps == 1 and len(cells) == 1 and "500" in said[-1]  # so much noise cannot be undone
    with pytest.raises(ValueError, match="fewer steps"):
        choose_setting(row, pairs, "psnr", ledger, (500,), (0.5,))

    with pytest.raises(ValueError, match="lpips.* 31 pixels"):  # the pairs have 16
        choose_setting(row, pairs, "lpips", ledger, **GRID)


def test_the_command_searches_then_freezes(root, tiny_model, tmp_path, monkeypatch, capsys):
    save_model(tiny_model(), tmp_path / "tiny.safetensors")
    text = (
        f"paper --weights tiny.safetensors --root {root} --incomplete --out out --sets gopro --grid --grid-steps 1 2 "
        "--grid-noise 0.5 0.9 --crop 16 --validation 2 --choose psnr --samples 1 --metrics psnr --device cpu"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tinymsg", *text.split()])
    assert main(text.split()) == 0
    before = (tmp_path / "out/table.json").read_bytes()
    found = json.loads(before)["settings"]["tiny"]
    best = max(found["grid"], key=lambda cell: cell["psnr"])
    assert (found["setting"]["steps"], found["setting"]["max_noise"]) == (best["steps"], best["max_noise"])
    assert len(found["grid"]) == 4
    assert found["chosen"] in (tmp_path / "out/table.md").read_text()
    assert "steps 1, max_noise 0.5" in capsys.readouterr().out
    assert main(text.split()) == 0 and (tmp_path / "out/table.json").read_bytes() == before

"""The sampler's setting is chosen on pictures that are in no test set, cell by cell, and the search resumes."""

import json
import sys

import miniatures
import pytest
import torch

from tinymsg.__main__ import main
from tinymsg.data import ImageError
from tinymsg.datasets.layouts import find_pairs
from tinymsg.evaluate import MetricUnavailable, choose_cell
from tinymsg.sample import Setting
from tinymsg.model import save_model
from tinymsg.paper import choose
from tinymsg.paper.choose import GRID_MAX_NOISE, GRID_STEPS, Centres, choose_setting, doubt, validation_pairs
from tinymsg.paper.ledger import Ledger
from tinymsg.paper.protocol import Entry
from tinymsg.evaluate import write_results
from tinymsg.training.runs import open_data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniatures.make_gopro(tmp_path_factory.mktemp("data"), train=6)


@pytest.fixture
def entry(tiny_model):
    return Entry("tiny", tiny_model(), "0" * 64, Setting("ddim", samples=3))


def test_the_grid_is_dvsrs():
    assert GRID_STEPS == (10, 20, 30, 50, 100, 200, 300, 500) and GRID_MAX_NOISE == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def test_the_grid_sees_what_a_training_holds_out(root, tiny_config):
    data = open_data(tiny_config(), torch.device("cpu"), str(root / "GOPRO_Large/train"), validate=True)
    pairs, trained = validation_pairs(99, root, complete=False), data.batches.pairs
    assert [pair.blurry for pair in pairs.pairs] == [trained.pairs.paths[i][1] for i in trained.held_out.tolist()]
    assert pairs.held_out == data.identity["held_out"]


def test_there_is_one_rule_of_what_is_held_out(root, monkeypatch):
    monkeypatch.setattr(choose, "choose_held_out", lambda names: ([names.index(max(names))], "another rule"))
    pairs = validation_pairs(99, root, complete=False)
    assert [pair.name for pair in pairs.pairs] == [
        max(p.name for p in find_pairs("gopro", root, "train", complete=False))
    ]
    assert pairs.held_out == "another rule"


def test_whether_the_training_saw_the_grids_pictures(root, tiny_config):
    pairs = validation_pairs(2, root, complete=False)
    record = lambda *data, **more: {"source": open_data(tiny_config(), torch.device("cpu"), *data, **more).identity}
    gopro = str(root / "GOPRO_Large/train")
    assert (
        doubt(record(gopro, validate=True), pairs) is None and doubt(record(), pairs) is None
    )  # synthetic pairs are not GoPro's
    assert "without --validate-every, it saw" in doubt(record(gopro), pairs)
    assert "recorded no held-out pictures" in doubt({}, pairs) and "no run.json" in doubt(None, pairs)
    other = {"source": {"blur": "blur", "held_out": "the last 2 of 40 training pairs"}}
    assert "held out the last 2 of 40 training pairs, and the grid's pictures are of the 3 pairs" in doubt(other, pairs)


def test_validation_is_of_the_training_split_and_not_of_a_test_set(root):
    pairs = validation_pairs(2, root, complete=False)
    train, test = ({p.sharp for p in find_pairs("gopro", root, split, complete=False)} for split in ("train", "test"))
    chosen = {pair.sharp for pair in pairs.pairs}
    assert len(chosen) == 2 and chosen <= train and not chosen & test
    assert {path.parent.parent.name for path in chosen} == {max(path.parent.parent.name for path in train)}
    assert pairs.name == "2 of 3 pairs held out of GoPro train (blur)"
    with pytest.raises(ValueError, match="gopro.py"):
        validation_pairs(2, root / "nowhere")


def test_centres(root):
    pairs = validation_pairs(2, root, complete=False)
    y0, x = pairs.crops(torch.tensor([1, 0]), 16)
    assert y0.shape == x.shape == (2, 3, 16, 16) and not torch.equal(y0, x)
    from tinymsg.data import read_image, to_model

    torch.testing.assert_close(y0[0], to_model(read_image(pairs.pairs[1].sharp)[:, 8:24, 16:32]))
    torch.testing.assert_close(x[1], to_model(read_image(pairs.pairs[0].blurry)[:, 8:24, 16:32]))
    with pytest.raises(ImageError, match="48x32 is smaller than the 40 pixels"):
        Centres(pairs.pairs, "x").crops(torch.tensor([0]), 40)


def test_the_search_is_frozen_resumes_and_never_mixes(root, entry, tmp_path, monkeypatch):
    ledger, pairs, lines = Ledger(tmp_path / "scores.jsonl"), validation_pairs(2, root, complete=False), []
    grid = {"steps": (1, 3), "max_noise": (0.5, 0.9)}
    setting, cells = choose_setting(entry, pairs, 32, "compromise", ledger, **grid, progress=lines.append)
    best = choose_cell(cells)
    assert setting == Setting("ddim", best["steps"], best["max_noise"], 3) and len(cells) == len(lines) == 4
    assert [(c["steps"], c["max_noise"]) for c in cells] == [(1, 0.5), (1, 0.9), (3, 0.5), (3, 0.9)]
    by_psnr, _ = choose_setting(entry, pairs, 32, "psnr", ledger, **grid)
    assert max(cells, key=lambda c: c["psnr"])["steps"] == by_psnr.steps
    # A search that was cut short goes on: what the file holds is not computed again
    computed = []
    real = choose.grid_search
    monkeypatch.setattr(choose, "grid_search", lambda *a, **k: (computed.append(a[4:6]), real(*a, **k))[1])
    short = tmp_path / "short.jsonl"
    short.write_text("".join(ledger.path.read_text().splitlines(keepends=True)[:3]))
    again, same = choose_setting(entry, pairs, 32, "compromise", Ledger(short), **grid)
    assert again == setting and same == cells and computed == [((3,), (0.9,))]
    for change in ({"weights": "1" * 64}, {"setting": Setting("ancestral")}):
        computed.clear()
        choose_setting(Entry(**{**vars(entry), **change}), pairs, 32, "compromise", ledger, **grid)
        assert len(computed) == 4
    computed.clear()
    choose_setting(entry, pairs, 16, "compromise", ledger, **grid)
    assert len(computed) == 4
    computed.clear()
    monkeypatch.setattr(Entry, "noise_key", {"device": "cuda"})  # which draws other noise
    choose_setting(entry, pairs, 16, "compromise", ledger, **grid)
    assert len(computed) == 4


def test_cells_that_cannot_be_undone_are_left_out_and_said(root, entry, tmp_path):
    ledger, pairs, lines = Ledger(tmp_path / "scores.jsonl"), validation_pairs(1, root, complete=False), []
    setting, cells = choose_setting(entry, pairs, 16, "psnr", ledger, (1, 500), (0.5,), lines.append)
    assert setting.steps == 1 and len(cells) == 1 and "left out" in lines[1] and "1e-60" in lines[1]
    with pytest.raises(ValueError, match="no cell of the grid"):
        choose_setting(entry, pairs, 16, "psnr", ledger, (500,), (0.5,))
    with pytest.raises(ValueError, match="unknown choice 'beauty'; known: compromise, psnr"):
        choose_setting(entry, pairs, 16, "beauty", ledger)


def test_choosing_by_a_metric_that_is_not_there_is_said_first(root, entry, tmp_path, monkeypatch):
    def unavailable(*_):
        raise MetricUnavailable("no weights here")

    monkeypatch.setattr(choose, "lpips_distance", unavailable)
    with pytest.raises(MetricUnavailable, match="no weights"):
        choose_setting(entry, validation_pairs(1, root, complete=False), 16, "lpips", Ledger(tmp_path / "s.jsonl"))


def test_the_command_searches_then_freezes(root, tiny_model, tmp_path, monkeypatch, capsys):
    save_model(tiny_model(), tmp_path / "tiny.safetensors")
    arguments = [
        "paper",
        "--weights",
        "tiny.safetensors",
        "--root",
        str(root),
        "--incomplete",
        "--out",
        "out",
        "--sets",
        "gopro",
        "--grid",
        "--grid-steps",
        "1",
        "2",
        "--grid-noise",
        "0.5",
        "0.9",
        "--crop",
        "16",
        "--validation",
        "2",
        "--choose",
        "psnr",
        "--samples",
        "1",
        "--metrics",
        "psnr",
        "--device",
        "cpu",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tinymsg", *arguments])
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out/table.json").read_text())
    found = results["settings"]["tiny"]
    best = max(found["grid"], key=lambda cell: cell["psnr"])
    assert (found["setting"]["steps"], found["setting"]["max_noise"]) == (best["steps"], best["max_noise"]) and len(
        found["grid"]
    ) == 4
    assert found["chosen"] == "by psnr, of 4 cells, on 2 of 3 pairs held out of GoPro train (blur)"
    warning = f"The setting of tiny was chosen {found['chosen']}, but there is no run.json beside the weights"
    assert (
        found["chosen"] in (tmp_path / "out/table.md").read_text()
        and warning in (tmp_path / "out/table.md").read_text()
    )
    said = capsys.readouterr()
    assert "steps 1, max_noise 0.5: psnr" in said.out and "warning: tiny: there is no run.json" in said.err
    before = (tmp_path / "out/table.json").read_bytes()
    assert main(arguments) == 0 and (tmp_path / "out/table.json").read_bytes() == before
    capsys.readouterr()
    write_results(
        tmp_path / "run.json",
        {"source": {"blur": "blur", "held_out": validation_pairs(1, root, complete=False).held_out}},
    )
    assert main([*arguments, "--out", "again"]) == 0
    assert (
        "setting of tiny" not in (tmp_path / "again/table.md").read_text() and "warning" not in capsys.readouterr().err
    )
    monkeypatch.setattr(
        choose, "lpips_distance", lambda *_: (_ for _ in ()).throw(MetricUnavailable("no weights here"))
    )
    assert main([*arguments, "--choose", "lpips"]) == 2
    assert "--choose lpips: no weights here" in capsys.readouterr().err

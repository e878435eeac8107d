"""The toy's studies: kernels, trials, scores, resuming."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from jaxtyping import TypeCheckError

from tinymsg.cli import main
from tinymsg.evaluate import read_results, write_results
from tinymsg.model import Model, count_parameters
from tinymsg.studies import toy, trials
from tinymsg.studies.signals import SignalPairs
from tinymsg.studies.trials import BREADTHS, FORMS, KEY, STUDIES, breadth_domains, family_kernels, sign_flip_p


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(toy, "SETTING", dataclasses.replace(toy.SETTING, steps=2, samples=2))


@pytest.mark.parametrize("extent", [trials.SHORT, trials.LONG])
def test_kernels_of_a_family(extent):
    kernels = family_kernels(torch.arange(200), 3, extent)
    assert kernels.shape[1] % 2 == 1 and (kernels >= 0).all()
    torch.testing.assert_close(kernels.sum(dim=1), torch.ones(200))
    place = torch.arange(kernels.shape[1], dtype=torch.float32)
    first = (kernels > 0).float().argmax(dim=1)
    last = kernels.shape[1] - 1 - (kernels.flip(1) > 0).float().argmax(dim=1)
    width = (last - first).float()
    assert width.min() >= extent[0] - 1 and width.max() <= extent[1] + 1 and width.std() > 0.5
    centre = (kernels * place).sum(dim=1)
    torch.testing.assert_close(centre, torch.full((200,), (kernels.shape[1] - 1) / 2), rtol=0, atol=1e-3)  # no shift


def test_a_kernel_depends_on_its_number_and_family_alone():
    many = family_kernels(torch.arange(50), 0)
    torch.testing.assert_close(family_kernels(torch.tensor([31, 7]), 0), many[[31, 7]])
    assert not torch.equal(family_kernels(torch.arange(50), 1), many)
    assert len(torch.unique(many, dim=0)) == 50


@pytest.mark.parametrize("kernels", BREADTHS)
def test_the_maps_domains_differ_in_one_thing(kernels):
    domains = breadth_domains(kernels, 0, seed=9)
    trained, unseen = domains["seen kernels"].kernels, domains["unseen kernels"].kernels
    assert len(trained) == kernels
    assert not (unseen[:, None] == trained[None, :32]).all(-1).any()
    assert torch.equal(domains["noise"].kernels, trained) and domains["noise"].noise > 0
    assert torch.equal(domains["photo rows"].kernels, trained) and domains["photo rows"].photos
    smaller = breadth_domains(1, 0, seed=9)["seen kernels"].kernels
    assert torch.equal(trained[:1], smaller), "a larger training set holds the smaller ones"


@pytest.mark.parametrize("name", STUDIES)
def test_a_studys_trials(name):
    study = STUDIES[name]
    trials = study.trials(2, 800)
    assert len({trial.key for trial in trials}) == len(trials)
    assert {trial.seed for trial in trials} == {0, 1}
    guided = count_parameters(Model(study.base.network))
    for trial in trials:
        assert trial.recipe.training.seed == trial.seed
        if "width" not in trial.arm:
            assert abs(count_parameters(Model(trial.recipe.network)) / guided - 1) < 0.1, trial.arm
    first, second = ({trial.arm for trial in trials if trial.seed == seed} for seed in (0, 1))
    assert first - {"blurry"} == second


@pytest.mark.parametrize("arm", FORMS)
def test_every_form_trains_and_is_scored(arm):
    trial = next(t for t in STUDIES["breadth"].trials(1, 3) if t.arm == arm and t.kernels == 4)
    entry = dataclasses.replace(trial, recipe=trial.recipe.change(batch=4)).run(4)
    assert list(entry["scores"]) == list(entry["blurry"]) == list(breadth_domains(1, 0, 0))
    score = entry["scores"]["seen kernels"]
    assert len(score["per_signal"]) == 4
    assert score["psnr"]["mean"] == pytest.approx(sum(score["per_signal"]) / 4, abs=0.01)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_the_same_trial_gives_the_same_scores():
    trial = STUDIES["forms"].trials(1, 4)[0]
    small = dataclasses.replace(trial, recipe=trial.recipe.change(batch=4, precision="fp32"))
    assert small.run(3) == small.run(3)


def test_rows_of_photographs_are_signals():
    pairs = SignalPairs(family_kernels(torch.arange(3), 0), seed=4, photos=True)
    y0, x = pairs.crops(torch.arange(12), 64)
    assert y0.shape == x.shape == (12, 1, 1, 64)
    assert y0.std() > 0.1 and 0 < (y0 - x).abs().mean() < 0.2
    again, _ = pairs.crops(torch.tensor([7]), 64)
    assert torch.equal(again[0], y0[7])


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    some, out = (1, 4), tmp_path / "breadth.json"
    monkeypatch.setitem(STUDIES, "breadth", dataclasses.replace(STUDIES["breadth"], kernels=some))
    command = ["ablate", "--study", "breadth", "--out", str(out), "--seeds", "1", "--steps", "2", "--count", "3"]
    command += ["--workers", "1", "--arms"]
    assert main([*command, "plain"]) == 0
    assert len(json.loads(out.read_text())["runs"]) == len(some)
    capsys.readouterr()
    assert main([*command, "plain", "guided"]) == 0
    assert f"breadth: {len(some)} of {len(FORMS) * len(some)} training runs" in capsys.readouterr().out
    runs = json.loads(out.read_text())["runs"]
    assert [(run["kernels"], run["arm"]) for run in runs] == [(n, arm) for n in some for arm in ("plain", "guided")]
    assert main([*command[:2], "forms", *command[3:], "plain"]) == 2
    assert "holds study breadth instead of forms" in capsys.readouterr().err
    assert main([*command, "nonsense"]) == 2
    assert "unknown arm 'nonsense' of breadth; known: regression, plain" in capsys.readouterr().err


def test_entries_stand_in_the_studys_order_whenever_they_come(tmp_path, monkeypatch):
    """As from workers; runs of arms that are gone stay, at the end."""
    monkeypatch.setattr(trials, "run_study", lambda todo, workers, count: map(entry_of, reversed(todo)))
    out = tmp_path / "toy.json"
    write_results(out, {"study": "forms", "steps": 2, "runs": [dict(zip(KEY, ("gone", 0, None, 2), strict=True))]})
    assert main(["ablate", "--out", str(out), "--steps", "2", "--seeds", "1", "--workers", "2"]) == 0
    assert [run["arm"] for run in read_results(out)["runs"]] == [*toy.ARMS, "gone"]


def entry_of(trial: trials.Trial) -> dict:
    return dict(zip(KEY, trial.key, strict=True)) | {"scores": {}}


def is_worker(process: psutil.Process) -> bool:
    """Beside them there is multiprocessing's own resource tracker."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "spawn_main" in " ".join(process.cmdline())
    return False


@pytest.mark.course
def test_a_killed_study_leaves_no_worker_behind(tmp_path):
    out = tmp_path / "toy.json"
    command = ["ablate", "--out", str(out), "--seeds", "2", "--steps", "5000", "--workers", "2", "--arms", "plain"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    study = psutil.Popen(
        [sys.executable, "-m", "tinymsg", *command], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    end, workers = time.monotonic() + 120, []
    try:
        while len(workers) < 2 and time.monotonic() < end:
            time.sleep(0.2)
            workers = [child for child in study.children() if is_worker(child)]
    finally:
        study.kill()
        study.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert len(workers) == 2 and not alive


def test_the_command_goes_on_with_the_same_steps_and_number_of_tests(tmp_path, capsys, monkeypatch):
    """Files that do not say it were made with the study's own."""
    out, old, counts = tmp_path / "new.json", tmp_path / "old.json", []
    monkeypatch.setattr(trials, "run_study", lambda todo, workers, count: counts.append(count) or iter(()))
    command = ["ablate", "--steps", "2", "--out"]
    assert main([*command, str(out), "--count", "3"]) == main([*command, str(out), "--count", "3"]) == 0
    assert read_results(out)["count"] == 3
    assert main([*command, str(out)]) == main([*command, str(out), "--count", "4"]) == 2
    assert "holds count 3 instead of 4; use another --out" in capsys.readouterr().err
    assert main(["ablate", "--steps", "3", "--out", str(out), "--count", "3"]) == 2
    assert "holds steps 2 instead of 3; use another" in capsys.readouterr().err
    write_results(old, {"study": "forms", "steps": 2, "runs": []})
    assert main([*command, str(old), "--count", "3"]) == 2
    assert "holds count 64 instead of 3" in capsys.readouterr().err
    assert main([*command, str(old)]) == 0
    assert read_results(old)["count"] == 64 and counts == [3, 3, 64]


@pytest.mark.parametrize("name", ["toy", "breadth"])
def test_the_command_goes_on_with_the_files_that_were_shipped(name, tmp_path, capsys):
    """Nothing is left to do, and no run is lost, of arms that are gone neither."""
    shipped = Path(__file__).parents[1] / "notebooks" / "results" / f"{name}.json"
    out, before = shutil.copy(shipped, tmp_path), read_results(shipped)
    assert main(["ablate", "--study", before["study"], "--out", str(out)]) == 0
    assert ": 0 of " in capsys.readouterr().out
    keys = [sorted(str([run[entry] for entry in KEY]) for run in of["runs"]) for of in (before, read_results(out))]
    assert keys[0] == keys[1] != []


@pytest.mark.parametrize("content", ["hello", "[1]", "3", "{}", b"\xff\xfe", {"rows": []}, None])
def test_the_command_leaves_what_is_no_study(content, tmp_path, capsys):
    out = tmp_path / "out.json"
    if content is None:
        out.mkdir()
    elif isinstance(content, dict):
        write_results(out, content)
    else:
        out.write_bytes(content.encode() if isinstance(content, str) else content)
    before = None if content is None else out.read_bytes()
    assert main(["ablate", "--out", str(out), "--steps", "2"]) == 2
    assert capsys.readouterr().err.strip().endswith("; use another --out")
    assert before is None or out.read_bytes() == before


def test_sign_flip_counts_the_ways_that_are_as_far_out():
    for n in (1, 3, 5):  # all of one sign: only this way and its mirror image are as far out
        assert sign_flip_p(torch.rand(n, generator=torch.Generator().manual_seed(n)) + 0.1) == 2 / 2**n
    values = torch.tensor([0.3, -0.1, 0.25, 0.4])
    means = [
        sum(s * v for s, v in zip(way, values.tolist(), strict=True)) / 4
        for way in itertools.product((1, -1), repeat=4)
    ]
    assert sign_flip_p(values) == sum(abs(m) >= abs(means[0]) - 1e-9 for m in means) / 16
    assert sign_flip_p(-values) == sign_flip_p(values) == sign_flip_p(1000 * values.double())
    assert sign_flip_p(torch.zeros(4)) == sign_flip_p(torch.tensor([1.0, -1.0])) == 1
    for wrong in (torch.ones(0), torch.ones(17), torch.ones(2, 2)):
        with pytest.raises((ValueError, TypeCheckError)):
            sign_flip_p(wrong)


def test_sign_flip_keeps_its_promise():
    """Of two equals, at most 5 % of the tables give a p-value below 0.05."""
    tables = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    assert 0.02 < sum(sign_flip_p(row) < 0.05 for row in tables) / 400 < 0.075

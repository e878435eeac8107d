"""The command line, as a user types it."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from kill_training import environment
from miniatures import make_gopro
from PIL import Image

from tinymsg.cli import COMMANDS, main
from tinymsg.cli.allocator import ALLOCATOR, restart_with_allocator
from tinymsg.evaluate import read_results, write_results
from tinymsg.machine import sha256
from tinymsg.model import build_model, load_model, plain_twin, save_model

TINY = shlex.split("widths=16,16,16,16 guidance_width=8 guidance_blocks=1 crop=16 batch=2 content_count=4 warmup=2")


def picture(path: Path, size=(37, 29), mode="RGB", **options) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def deblur(*arguments, weights) -> int:
    return main(["deblur", *map(str, arguments), "--weights", str(weights), "--steps", "2", "--device", "cpu"])


def test_one_picture(tmp_path, weights, capsys):
    source, target = picture(tmp_path / "in.png"), tmp_path / "out.png"
    assert deblur(source, "-o", target, weights=weights) == 0
    assert size_of(target) == (37, 29)
    assert "->" in capsys.readouterr().out
    again = tmp_path / "again.png"
    deblur(source, "-o", again, weights=weights)
    assert again.read_bytes() == target.read_bytes(), "the same seed gives the same picture"
    other = tmp_path / "other.png"
    deblur(source, "-o", other, "--seed", 1, weights=weights)
    assert other.read_bytes() != target.read_bytes()


def test_a_folder_goes_on_past_bad_files(tmp_path, weights, capsys):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    picture(folder / "a.png")
    picture(folder / "sub" / "b.jpg", (1, 1))
    picture(folder / "c.png", mode="P")
    picture(folder / "d.tif", mode="CMYK")
    (folder / "bad.png").write_text("not a picture")
    (folder / "torn.jpg").write_bytes(picture(tmp_path / "whole.jpg", (300, 300)).read_bytes()[:2000])
    (folder / "notes.txt").write_text("ignored")
    assert deblur(folder, "-o", tmp_path / "out", weights=weights) == 1
    captured = capsys.readouterr()
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png", "c.png", "d.tif", "sub/b.jpg"]
    failures = [line for line in captured.err.splitlines() if line.startswith("failed:")]
    assert (
        len(failures) == 2
        and any("bad.png" in line for line in failures)
        and any("torn.jpg" in line for line in failures)
    )
    assert "4 of 6" in captured.out


def test_an_existing_output_is_kept(tmp_path, weights, capsys):
    source, target = picture(tmp_path / "in.png"), tmp_path / "out.png"
    target.write_text("precious")
    assert deblur(source, "-o", target, weights=weights) == 1
    assert target.read_text() == "precious" and "--overwrite" in capsys.readouterr().err
    assert deblur(source, "-o", target, "--overwrite", weights=weights) == 0
    assert size_of(target) == (37, 29)


def _unreadable(path):
    raise MemoryError


@pytest.mark.parametrize(
    ("place", "fault", "size"),
    [
        ("restoring.files.open_photo", _unreadable, ""),
        # a plain RuntimeError of the CPU's allocator
        ("restoring.tiles.restore_large", lambda *a, **k: torch.empty(2**50), " on cpu for 40x29 pixels"),
    ],
)
@pytest.mark.parametrize("bad", ["a.png", "b.png"])
def test_without_memory_a_file_fails_and_the_others_go_on(
    place, fault, size, bad, tmp_path, weights, capsys, monkeypatch
):
    module, name = place.rsplit(".", 1)
    module = importlib.import_module(f"tinymsg.{module}")
    real = getattr(module, name)
    calls = iter([fault] if bad == "a.png" else [real, fault])
    monkeypatch.setattr(module, name, lambda *a, **k: next(calls, real)(*a, **k))
    (tmp_path / "in").mkdir()
    for file in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / file, (40, 29) if file == bad else (37, 29))
    assert deblur(tmp_path / "in", "-o", tmp_path / "out", weights=weights) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", "c.png"} - {bad}
    captured = capsys.readouterr()
    assert f"failed: {tmp_path / 'in' / bad}: not enough memory{size}" in captured.err
    assert "2 of 3" in captured.out


def test_a_fault_of_the_program_is_no_lack_of_memory(tmp_path, weights, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("tinymsg.restoring.tiles.restore_large", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        deblur(picture(tmp_path / "in.png"), "-o", tmp_path / "out.png", weights=weights)


def test_a_regression_takes_one_step_whatever_is_asked_for(tmp_path, tiny_recipe):
    save_model(build_model(plain_twin(tiny_recipe().network, "regression")), tmp_path / "w.safetensors")
    arguments = ["deblur", str(picture(tmp_path / "in.png")), "-o", str(tmp_path / "out.png")]
    arguments += ["--weights", str(tmp_path / "w.safetensors"), "--device", "cpu"]
    assert main([*arguments, "--steps", "500", "--max-noise", "0.99"]) == 0


def test_every_part_of_the_setting_counts(tmp_path, weights):
    """Each option changes the picture; the card's setting is what nothing else is said of."""
    source, seen = picture(tmp_path / "in.png"), set()
    for number, options in enumerate(
        [[], ["--sampler", "ddim"], ["--grid", "cosine"], ["--max-noise", "0.5"], ["--samples", "3"], ["--seed", "1"]]
    ):
        target = tmp_path / f"{number}.png"
        assert deblur(source, "-o", target, *options, weights=weights) == 0
        seen.add(target.read_bytes())
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deblur", "nowhere.png", "-o", "OUT.png"], "no such file"),
        (["deblur", "IN", "-o", "OUT.png", "--weights", "nope"], "unknown weights 'nope'"),
        (["deblur", "IN", "IN", "-o", "OUT"], "two inputs"),
        (["deblur", "IN", "-o", "OUT.png", "--device", "quantum"], "cannot be used here"),
        (["deblur", "IN", "-o", "OUT.png", "--sampler", "dice"], "known: ancestral, ddim, dpm_solver"),
        (["deblur", "IN", "-o", "OUT.png", "--grid", "dice"], "known: linear, cosine"),
        (
            ["deblur", "IN", "-o", "OUT.png", "--steps", "400", "--max-noise", "0.99"],
            "use fewer steps or a smaller max_noise",
        ),
        (
            ["train", "--estimate", "--device", "cpu", "--set", "scales=9"],
            "scales must be distinct and within 1 .. 3, got (9,)",
        ),
        (["train", "--out", "OUT", "--set", "lerning_rate=1"], "unknown setting 'lerning_rate'"),
        (["train", "--out", "OUT", "--set", "steps=many"], "'many' is not a value"),
        (["train", "--out", "OUT", "--set", "predict=y"], "known: eps, x0, v"),
        (["train", "--out", "OUT", "--set", "crop=17"], "multiple of 8"),
        (["train", "--out", "OUT", "--data", "nowhere"], "neither a data set (gopro, hide"),
        (["train", "--out", "OUT", "--data", "gopro", "--root", "IN"], "data_scripts/gopro.py"),
        (["train", "--out", "OUT", "--profile", "full", "--root", "IN"], "data_scripts/gopro.py"),
        (["train"], "--out FOLDER is missing"),
        (["train", "--out", "OUT", "--validation", "gopro"], "--validation needs --validate-every"),
        (["train", "--out", "OUT", "--set", "batch=6", "accumulate=4"], "accumulate must divide batch"),
        (["train", "--out", "OUT", "--set", "content=nowhere"], "unknown content"),
        (["train", "--out", "OUT", "--start", "nowhere"], "unknown weights 'nowhere'"),
        (
            ["train", "--out", "OUT", "--start", "W"],
            "another network: widths is (16, 16, 16, 16), not (32, 64, 128, 128), guidance_width is 8, not 32",
        ),
        (["evaluate", "--out", "OUT.json", "--weights", "W", "--domains", "mars"], "unknown domain 'mars'"),
        (["evaluate", "--out", "OUT.json", "--weights", "W", "W"], "the name is taken; give another by ROW="),
        (["evaluate", "--out", "OUT.json", "--weights", "blurry=W"], "a row cannot be named 'blurry'"),
        (["evaluate", "--out", "OUT.json", "--weights", "a=W", "a-mean=W"], "a row cannot be named 'a-mean'"),
        (["ablate", "--out", "OUT.json", "--arms", "none"], "unknown arm"),
        (["ablate", "--out", "OUT.json", "--study", "parts"], "known: forms, breadth"),
        (["ablate", "--out", "IN"], "in.png is not a results file (UnicodeDecodeError); use another --out"),
        (["publish", "nowhere", "--name", "x", "--results", "nowhere.json"], "no weights at"),
    ],
)
def test_mistakes_get_one_sentence(arguments, message, tmp_path, weights, capsys):
    places = {
        "IN": picture(tmp_path / "in.png"),
        "OUT": tmp_path / "out",
        "OUT.png": tmp_path / "out.png",
        "OUT.json": tmp_path / "out.json",
        "W": weights,
    }
    arguments = [str(places.get(a, a)).replace("=W", f"={weights}") for a in arguments]
    if arguments[0] == "deblur" and "--weights" not in arguments:
        arguments += ["--weights", str(weights)]
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("command", "option", "least"), [("evaluate", "--count", 2), ("evaluate", "--samples", 1), ("ablate", "--count", 2)]
)
def test_too_small_a_number_is_refused_by_its_option(command, option, least, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--out", str(tmp_path / "out.json"), option, str(least - 1)])
    assert stop.value.code == 2 and f"{option}: must be at least {least}, got {least - 1}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([command, "--out", str(tmp_path / "out.json"), option, "many"])
    assert f"argument {option}: invalid integer value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["deblur"], ["deblur", "a.png", "-o", "b.png", "--max-noise", "1.5"], ["fly"], []]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def run(*arguments, cwd, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tinymsg", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


@pytest.mark.parametrize(
    "platform, of_the_user, restarts", [("linux", None, 1), ("linux", next(iter(ALLOCATOR)), 0), ("darwin", None, 0)]
)
def test_programs_restart_once_with_the_allocators_settings(platform, of_the_user, restarts, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append((program, command)))
    monkeypatch.setattr(sys, "platform", platform)
    with mock.patch.dict(os.environ):
        for name in ALLOCATOR:
            os.environ.pop(name, None)
        if of_the_user:
            os.environ[of_the_user] = "1"
        restart_with_allocator("program.py", "--fast")
        restart_with_allocator("program.py", "--fast")  # what it has become
        found = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    assert started == restarts * [(sys.executable, [sys.executable, "program.py", "--fast"])]
    assert found == (ALLOCATOR if restarts else {of_the_user: "1"} if of_the_user else {})


def test_a_traceback_for_whoever_looks_for_a_mistake_of_ours(monkeypatch):
    monkeypatch.setenv("TINYMSG_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown setting"):
        main(["train", "--estimate", "--set", "nonsense=1"])


@pytest.mark.parametrize(
    "error, said",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("an illegal memory access was encountered"), False),
    ],
)
def test_memory_that_ran_out_is_one_sentence(error, said, monkeypatch, capsys):
    def spent(args):
        raise error

    monkeypatch.setattr("tinymsg.cli.train.run", spent)
    if not said:
        with pytest.raises(RuntimeError, match="illegal"):
            main(["train", "--out", "nowhere"])
        return
    assert main(["train", "--out", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("tinymsg: memory ran out; take smaller")


def test_a_full_disk_and_ctrl_c_are_one_sentence(monkeypatch, capsys):
    for error, status, said in (
        (OSError(28, "No space left on device", "scores.json"), 2, "tinymsg: scores.json: No space left on device\n"),
        (KeyboardInterrupt(), 130, "\nstopped; the files that were finished are whole\n"),
    ):

        def fail(args, error=error):
            raise error

        monkeypatch.setattr("tinymsg.cli.evaluate.run", fail)
        assert main(["evaluate", "--out", "scores.json"]) == status
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_training_without_memory_says_what_to_lower(error, tmp_path, monkeypatch, capsys):
    def spent(*arguments):
        raise error

    monkeypatch.setattr("tinymsg.cli.train._train", spent)
    assert main(["train", "--out", str(tmp_path), "--device", "cpu", "--set", *TINY]) == 2
    assert "out of memory on cpu: raise accumulate" in capsys.readouterr().err


def test_help_names_every_command(tmp_path):
    text = run("--help", cwd=tmp_path).stdout
    assert all(re.search(rf"^ +{command.__name__.rpartition('.')[2]}( |$)", text, re.M) for command in COMMANDS)


@pytest.fixture
def small_grid(monkeypatch):
    """evaluate tries two settings and no more."""
    monkeypatch.setattr("tinymsg.paper.choose.GRID_STEPS", (1, 2))
    monkeypatch.setattr("tinymsg.paper.choose.GRID_MAX_NOISE", (0.9,))


EVALUATE = shlex.split("--device cpu --count 3 --validation 2 --samples 2")


def typed(monkeypatch, *arguments) -> int:
    """As main, for commands that record what was typed."""
    monkeypatch.setattr(sys, "argv", ["tinymsg", *map(str, arguments)])
    return main()


def test_train_evaluate_publish(tmp_path, monkeypatch, small_grid, capsys):
    """The whole life of a model: trained, evaluated, published, loaded by name, and used."""
    monkeypatch.chdir(tmp_path)
    out, results = tmp_path / "run", tmp_path / "scores.json"
    train = shlex.split("train --out run --device cpu --log-every 2 --save-every 2 --set steps=4")
    assert typed(monkeypatch, *train, *TINY) == 0
    assert [p.name for p in sorted(out.glob("*.pt"))] == ["checkpoint-00000002.pt", "checkpoint-00000004.pt"]
    assert [line.split(",")[0] for line in (out / "log.csv").read_text().splitlines()] == ["step", "2", "4"]
    evaluate = [
        "evaluate",
        "--out",
        "scores.json",
        "--size",
        "32",
        "--domains",
        "gopro_like",
        "real",
        *EVALUATE,
        "--weights",
    ]
    assert typed(monkeypatch, *evaluate, "guided=run/weights.safetensors") == 0
    assert "guided-mean" in capsys.readouterr().out
    for domain in ("gopro_like", "real"):
        assert set(read_results(results)["domains"][domain]["scores"]) == {"blurry", "guided", "guided-mean"}
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setattr("tinymsg.model.WEIGHTS", shelf)
    assert main(["publish", str(out), "--name", "tiny-guided", "--results", str(results)]) == 0
    card = read_results(shelf / "tiny-guided.json")
    assert card["steps"] == 4 and card["images_seen"] == 8 and card["setting"]["steps"] in (1, 2)
    assert deblur(picture(tmp_path / "in.png"), "-o", tmp_path / "out.png", weights="tiny-guided") == 0
    assert [(run["steps"], run["curve"]) for run in card["history"]] == [(4, [])] and card["history"][0]["hours"] >= 0

    # The card's command builds the same weights again, and they get the same scores
    command = shlex.split(card["command"])
    command = command[command.index("train") :]
    assert command[:3] == ["train", "--out", "run"]
    assert typed(monkeypatch, *command[:2], "again", *command[3:]) == 0
    assert sha256("again/weights.safetensors") == card["sha256"] == sha256(shelf / "tiny-guided.safetensors")
    assert {path.name for path in shelf.iterdir()} == {"tiny-guided.safetensors", "tiny-guided.json"}
    assert typed(monkeypatch, *evaluate, "guided=again/weights.safetensors") == 0
    assert read_results(results)["domains"]["gopro_like"]["scores"]["guided"] == card["scores"]["gopro_like"]["guided"]

    # Trained on from what is published, judged on photographs: its card tells both runs, and has a setting a quality
    train = shlex.split(
        "train --start tiny-guided --out on --device cpu --validate-every 1 --validation-count 2 --set steps=2"
    )
    assert typed(monkeypatch, *train, *TINY) == 0
    quality = {name: {"setting": {"steps": 1}, "safe": True, "scores": {}} for name in ("fast", "default", "best")}
    judged = {"weights": {"guided": {"sha256": sha256("on/weights.safetensors")}}, "parameters": {"guided": 1}}
    write_results(results, judged | {"data": {}, "quality": {"guided": quality}})
    said = ["--pictures", "two of mine, CC0"]
    assert main(["publish", "on", "--name", "tiny-further", "--results", str(results), *said]) == 0
    card = read_results(shelf / "tiny-further.json")
    assert card["pictures"] == said[1]
    assert [run["steps"] for run in card["history"]] == [4, 2] and card["quality"]["fast"] == {"steps": 1}
    quality["best"]["setting"] = {"steps": 2, "start": "runs/first.safetensors"}
    write_results(results, judged | {"data": {}, "quality": {"guided": quality}})
    assert main(["publish", "on", "--name", "tiny-further", "--results", str(results), *said]) == 2
    assert "begin at runs/first.safetensors: publish it first" in capsys.readouterr().err
    assert [set(point) for point in card["history"][1]["curve"]] == [
        {"step", "psnr"}
    ] * 2  # 16 pixels are too few for LPIPS


def test_other_weights_than_evaluated_are_not_published(tmp_path, weights, capsys):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "weights.safetensors").write_bytes(weights.read_bytes())
    write_results(run_folder / "run.json", RUN)
    write_results(tmp_path / "scores.json", SCORES | {"weights": {"guided": {"sha256": "0" * 64}}})
    assert main(["publish", str(run_folder), "--name", "x", "--results", str(tmp_path / "scores.json")]) == 2
    assert (
        f"holds no scores of {run_folder / 'weights.safetensors'}: evaluate these very weights first"
        in capsys.readouterr().err
    )


RUN = {"command": "python -m tinymsg train", "steps": 4, "config": {}}
SCORES = {"weights": {}, "parameters": {"guided": 1}, "setting": {}, "unavailable": {}, "domains": {}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda run, scores: (run / "run.json").unlink(),
            "run.json is not a results file (No such file or directory); give the folder of a",
        ),
        (
            lambda run, scores: (run / "run.json").write_text(json.dumps(RUN | {"digest": "0"})),
            "something was changed by hand",
        ),
        (
            lambda run, scores: (run / "run.json").write_text("{"),
            "run.json is not a results file (JSONDecodeError); give the folder of a finished train",
        ),
        (lambda run, scores: write_results(scores, {"rows": []}), "of another kind, without weights, parameters"),
        (
            lambda run, scores: scores.write_text("[]"),
            "scores.json is not a results file (TypeError); evaluate these very weights first",
        ),
        (
            lambda run, scores: scores.unlink(),
            "scores.json is not a results file (No such file or directory); evaluate these",
        ),
    ],
)
def test_nothing_is_published_without_its_records(spoil, message, tmp_path, weights, monkeypatch, capsys):
    run_folder, scores, shelf = tmp_path / "run", tmp_path / "scores.json", tmp_path / "shelf"
    run_folder.mkdir()
    shelf.mkdir()
    monkeypatch.setattr("tinymsg.model.WEIGHTS", shelf)
    (run_folder / "weights.safetensors").write_bytes(weights.read_bytes())
    write_results(run_folder / "run.json", RUN)
    write_results(scores, SCORES | {"weights": {"guided": {"sha256": sha256(weights)}}})
    spoil(run_folder, scores)
    assert main(["publish", str(run_folder), "--name", "x", "--results", str(scores)]) == 2
    assert message in capsys.readouterr().err and list(shelf.iterdir()) == []


@pytest.mark.course
def test_a_scheduler_stops_it_and_a_second_process_is_refused(tmp_path):
    """SIGTERM: the step in hand, a checkpoint, a sentence, status 143. Meanwhile the folder is taken."""
    settings = shlex.split("train --out run --device cpu --log-every 1 --set steps=20000 precision=fp32") + TINY
    process = subprocess.Popen(
        [sys.executable, "-m", "tinymsg", *settings],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "log.csv").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        second = run(*settings, cwd=tmp_path)
        assert (
            second.returncode == 2
            and f"process {process.pid} on " in second.stderr
            and "stop it first" in second.stderr
        )
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.stdout.close()
    assert process.returncode == 143 and "by SIGTERM, checkpoint written; the same command goes on" in said, said
    step = int(said.split("stopped at step ")[1].split()[0])
    assert [p.name for p in (tmp_path / "run").glob("*.pt")] == [
        f"checkpoint-{step:08d}.pt"
    ] and "Traceback" not in said


def test_train_with_everything_on(tmp_path, capsys):
    """Real pairs, validation, minutes, accumulated gradients; run.json says on what."""
    data = make_gopro(tmp_path, train=6, frames=2) / "GOPRO_Large"
    out = tmp_path / "run"
    arguments = [
        "train",
        "--out",
        str(out),
        "--data",
        str(data / "train"),
        *shlex.split("--blur blur_gamma --device cpu"),
    ]
    arguments += shlex.split(
        "--log-every 2 --save-minutes 0 --validate-every 2 --validation-count 1 --validation-size 32"
    )
    arguments += ["--set", "steps=4", *TINY, "accumulate=2"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "estimate: " in said and "without 2 held out" in said
    ran = json.loads((out / "run.json").read_text())
    assert (
        ran["source"]["blur"] == "blur_gamma"
        and ran["source"]["pairs"] == 12
        and "GOPR0377_07_05" in ran["source"]["held_out"]
    )
    assert ran["config"]["training"]["accumulate"] == 2 and "training sequence" in ran["validation"]
    assert (
        len((out / "validation.csv").read_text().splitlines()) == 3
        and len(list((out / "validation").glob("*.png"))) == 2
    )
    assert main([*arguments, "lr=1e-5"]) == 2
    assert "other settings: lr; use the same" in capsys.readouterr().err
    assert main([*arguments, "lr=1e-5", "--accept-changes"]) == 0
    (out / "weights.safetensors").unlink()
    elsewhere = [str(data / "test") if a == str(data / "train") else a for a in arguments]
    assert main(elsewhere) == 2
    assert "other data: " in capsys.readouterr().err


def test_fine_tuning_begins_with_trained_weights(tmp_path, weights, capsys):
    """--start: the first step's loss is the trained network's; where it began is recorded, and must stay the same."""
    same = ["--device", "cpu", "--log-every", "1", "--set", "steps=1", "precision=fp32", *TINY]
    for name, extra in (("random", []), ("tuned", ["--start", str(weights)])):
        assert main(["train", "--out", str(tmp_path / name), *extra, *same]) == 0
    first = [
        float((tmp_path / name / "log.csv").read_text().splitlines()[1].split(",")[1]) for name in ("random", "tuned")
    ]
    assert first[0] != first[1]
    assert read_results(tmp_path / "tuned" / "run.json")["source"]["started_from"].endswith(sha256(weights))
    assert "started_from" not in read_results(tmp_path / "random" / "run.json")["source"]
    start, end = (load_model(path).state_dict() for path in (weights, tmp_path / "tuned" / "weights.safetensors"))
    moved = max(float((end[name] - start[name]).abs().max()) for name in start)
    assert 0 < moved < 0.01, "one step of a small rate"
    assert main(["train", "--out", str(tmp_path / "tuned"), *same]) == 2
    assert "started_from is None and was" in capsys.readouterr().err


def test_guided_training_may_begin_with_a_plain_network(tmp_path):
    """The guidance joins as if it were not there, and learns from the first step on."""
    same, plain = ["--device", "cpu", "--log-every", "1", "--set", "precision=fp32", *TINY], ["scales=", "steps=1"]
    assert main(["train", "--out", str(tmp_path / "before"), *same, *plain]) == 0
    start = ["--start", str(tmp_path / "before" / "weights.safetensors")]
    for name, changes in (("plain", plain), ("guided", ["steps=1"])):
        assert main(["train", "--out", str(tmp_path / name), *start, *same, *changes]) == 0
    rows = [(tmp_path / name / "log.csv").read_text().splitlines()[1].split(",") for name in ("plain", "guided")]
    assert float(rows[0][1]) == pytest.approx(float(rows[1][1]), rel=1e-4)
    after = load_model(tmp_path / "guided" / "weights.safetensors")
    assert all(layer.weight.abs().max() > 0 for layer in after.guidance.to_encoder)


def test_a_diffusion_begins_as_the_regression_that_it_starts_from(tmp_path):
    """At every noise level, whatever the noise; then it learns to look at it."""
    same = ["--device", "cpu", "--set", "precision=fp32", *TINY]
    assert main(["train", "--arm", "regression", "--out", str(tmp_path / "regression"), *same, "steps=3"]) == 0
    start = ["--start", str(tmp_path / "regression" / "weights.safetensors")]
    for name, changes in (("still", ["lr=1e-9", "steps=1"]), ("moved", ["lr=1e-2", "steps=3"])):
        assert main(["train", "--arm", "plain", "--out", str(tmp_path / name), *start, *same, *changes]) == 0
    models = {name: load_model(tmp_path / name / "weights.safetensors") for name in ("regression", "still", "moved")}
    x, noise = torch.rand(1, 3, 32, 32) * 2 - 1, torch.randn(2, 1, 3, 32, 32)
    answer = models["regression"].denoiser(x)(noise[0], torch.zeros(1))
    assert (answer - x).abs().max() > 1e-3, "it has learnt something"
    for level in (0.01, 0.5, 0.99):
        still, moved = ([models[n].denoiser(x)(z, torch.tensor([level])) for z in noise] for n in ("still", "moved"))
        torch.testing.assert_close(still, [answer, answer], rtol=0, atol=1e-4)
        assert (moved[0] - moved[1]).abs().max() > 1e-6


@pytest.mark.parametrize("change", ["predict=v", "residual=false", "residual_scale=3"])
def test_weights_of_the_same_shape_whose_output_means_something_else_are_no_start(change, tmp_path, capsys):
    same = ["--arm", "plain", "--device", "cpu", "--set", *TINY, "steps=1"]
    assert main(["train", "--out", str(tmp_path / "before"), *same]) == 0
    start = ["--start", str(tmp_path / "before" / "weights.safetensors")]
    assert main(["train", "--out", str(tmp_path / "after"), *start, *same, change]) == 2
    assert f"another network: {change.partition('=')[0]} is " in capsys.readouterr().err


def test_the_control_arm_has_the_branch_but_not_its_loss(tmp_path):
    arguments = ["train", "--arm", "control", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*arguments, "--set", "steps=2", *TINY]) == 0
    config = read_results(tmp_path / "run" / "run.json")["config"]["network"]
    assert config["target"] == "none" and config["scales"] == [1, 2, 3]


def test_train_on_a_data_set_by_name(tmp_path, capsys):
    """`--data gopro` takes the packed form; its manifest's hash is recorded."""
    make_gopro(tmp_path, train=6, frames=2)
    assert main(["pack", "gopro", "--incomplete", "--workers", "1", "--root", str(tmp_path)]) == 0
    out = tmp_path / "run"
    arguments = ["train", "--out", str(out), "--data", "gopro", "--root", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--set", "steps=1", *TINY]) == 0
    source = json.loads((out / "run.json").read_text())["source"]
    assert len(source["manifest_sha256"]) == 64 and source["pairs"] == 12 and source["blur"] == "blur"


def test_estimate_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--estimate", "--device", "cpu", "--set", *TINY]) == 0
    said = capsys.readouterr().out
    assert (
        "GFLOP to train on one crop, 2 crops of 16x16" in said and "estimate: " in said and "| 80 GB | 2 x 1 |" in said
    )
    assert list(tmp_path.iterdir()) == []

"""The paper's evaluation on miniature sets: each picture restored once, scored by its set's protocol, resumable, never mixed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import register_colours

from tinymsg.__main__ import ALLOCATOR, main
from tinymsg.data import read_image, to_model, write_image
from tinymsg.evaluate import METRICS, MetricUnavailable, psnr
from tinymsg.sample import Setting
from tinymsg.model import Model, model_card
from tinymsg.paper import protocol as paper
from tinymsg.paper.fid import SET_METRICS
from tinymsg.paper.ledger import Ledger
from tinymsg.paper.niqe import Pristine
from tinymsg.paper.protocol import Entry, Scorer, draws, open_folder, open_set, rows_of, run_set
from tinymsg.sample import restore

SETTING = Setting("ancestral", steps=2, max_noise=0.9, samples=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The four sets, and others, unpacked from miniature archives of the true names."""
    source, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("data")
    for make in (miniatures.make_gopro, miniatures.make_hide, miniatures.make_realblur, miniatures.make_reds):
        make(source)
    miniatures.make_kohler(source, images=1, kernels=2)
    archives = [
        miniatures.zip_tree(source, source / "packed" / f"{name}.zip", name)
        for name in ("GOPRO_Large", "HIDE_dataset", "REDS", "Kohler")
    ]
    archives.append(miniatures.tar_tree(source, source / "packed" / "RealBlur.tar.gz", "RealBlur"))
    for archive in archives:
        shutil.unpack_archive(archive, folder, **({} if archive.suffix == ".zip" else {"filter": "data"}))
    return folder


@pytest.fixture
def entry(tiny_model) -> Entry:
    return Entry("tiny", tiny_model(), "0" * 64, SETTING)


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(metrics=("psnr", "ssim"))


def finish(test, rows, out, scorer=None, **options) -> tuple[Ledger, list[str]]:
    ledger = Ledger(out / "scores.jsonl")
    failures = [f for f in run_set(test, rows, out, ledger, scorer or Scorer(metrics=("psnr",)), **options) if f]
    return ledger, failures


def pictures(out: Path) -> list[Path]:
    return sorted((out / "pictures").rglob("*.png"))


# --- sets and rows ------------------------------------------------------------------------------------------------


def test_sets_have_their_protocols_and_say_what_they_are(root):
    protocols = {name: open_set(name, root, complete=False).protocol for name in (*paper.SETS, "kohler")}
    assert protocols == {
        "gopro": "plain",
        "hide": "plain",
        "realblur_j": "realblur",
        "reds_val300": "plain",
        "kohler": "kohler",
    }
    gopro, gamma = (open_set("gopro", root, blur, complete=False) for blur in ("blur", "blur_gamma"))
    assert gopro.total == 1111 and len(gopro.pairs) == 3 and gopro.identity != gamma.identity
    assert open_set("hide", root, "blur_gamma", complete=False).identity == "hide"  # GoPro's choice is no other set's
    assert open_set("gopro", root, complete=False, protocol="shift").protocol == "shift"
    with pytest.raises(ValueError, match="1111"):
        open_set("gopro", root)
    with pytest.raises(ValueError, match="hide.py"):
        open_set("hide", root / "nowhere")
    with pytest.raises(ValueError, match="unknown protocol 'affine'; known: plain, realblur, shift, kohler"):
        open_set("gopro", root, complete=False, protocol="affine")


def test_a_limit_is_spread_evenly(root):
    names = [pair.name for pair in open_set("hide", root, complete=False).pairs]
    assert [pair.name for pair in open_set("hide", root, limit=2, complete=False).pairs] == names[::2]
    assert [pair.name for pair in open_set("hide", root, limit=9, complete=False).pairs] == names


def test_a_folder_of_ones_own(root):
    mine = open_folder(root / "GOPRO_Large/test", "blur_gamma")
    (mine.pairs[0].blurry.parent / "._000047.png").write_bytes(b"left by a Mac: no picture, and no sharp one beside it")
    assert open_folder(root / "GOPRO_Large/test", "blur_gamma") == mine
    assert len(mine.pairs) == mine.total == 3 and mine.name == "test" and mine.protocol == "plain"
    assert (
        mine.pairs[0].name.endswith("blur_gamma/000047")
        and mine.identity != open_folder(root / "GOPRO_Large/test").identity
    )


def test_rows(tiny_model, entry):
    regression = Entry("regression", tiny_model(kind="regression", scales=()), "1" * 64, SETTING)
    rows = rows_of([entry, regression, replace(entry, label="once", setting=replace(SETTING, samples=1))])
    assert [(row.label, row.samples) for row in rows] == [
        ("sharp", 1),
        ("blurry", 1),
        ("tiny", 1),
        ("tiny-SA", 3),
        ("regression", 1),
        ("once", 1),
    ]
    assert (
        rows[2].key() == rows[5].key() != rows[3].key()
    )  # one sample is one sample, however many are averaged beside it
    changes = [
        replace(entry, weights="2" * 64),
        replace(entry, seed=1),
        replace(entry, setting=replace(SETTING, steps=3)),
        replace(entry, setting=replace(SETTING, max_noise=0.5)),
        replace(entry, setting=replace(SETTING, sampler="ddim")),
    ]
    keys = [json.dumps(rows_of([e])[2].key()) for e in (entry, *changes)]
    folders = {rows_of([e])[2].folder() for e in (entry, *changes)}
    assert len(set(keys)) == len(folders) == 6
    assert rows_of([replace(entry, label="other name")])[2].folder() == rows[2].folder()


def test_pictures_of_another_kind_of_device_are_another_rows(entry, tiny_config):
    """Its generator draws other noise from the same seed. What was stored before the key said so was made on a CPU, and is found."""
    row = rows_of([entry])[2]
    assert "device" not in row.key()
    with torch.device("meta"):
        elsewhere = rows_of([replace(entry, model=Model(tiny_config()))])[2]
    assert elsewhere.key() == row.key() | {"device": "meta"} and elsewhere.folder() != row.folder()


def test_auto_precision_is_settled_once_for_all_runs(tiny_model, tmp_path, monkeypatch):
    """A race that a busy machine may decide otherwise the next time must not mix two kinds of pictures."""
    answers = iter([True, False])
    monkeypatch.setattr(paper, "use_bf16", lambda *_: next(answers))
    for _ in range(2):
        model = tiny_model(precision="auto")
        paper.settle_precision(model, Ledger(tmp_path / "scores.jsonl"), torch.device("cpu"))
        assert model.config.precision == "bf16"
    keys = [rows_of([Entry("a", tiny_model(precision=p), "0", SETTING)])[2].key() for p in ("fp32", "bf16")]
    assert keys[0] != keys[1]
    fixed = tiny_model(precision="fp32")
    paper.settle_precision(fixed, Ledger(tmp_path / "scores.jsonl"), torch.device("cpu"))
    assert fixed.config.precision == "fp32"


# --- restoring ------------------------------------------------------------------------------------------------------


def test_draws_are_the_samplers_and_whole(entry, images):
    _, x = images(1, 3, 21, 35)
    found = draws(entry, x, "gopro a")
    assert list(found) == [1, 3] and found[1].shape == x.shape
    again = draws(entry, x, "gopro a")
    assert torch.equal(found[1], again[1]) and torch.equal(found[3], again[3])
    assert not torch.equal(found[1], draws(entry, x, "gopro b")[1])
    assert not torch.equal(found[1], draws(replace(entry, seed=1), x, "gopro a")[1])
    assert torch.equal(found[1], draws(replace(entry, setting=replace(SETTING, samples=1)), x, "gopro a")[1])
    import hashlib

    noise = int.from_bytes(hashlib.sha256(b"0 gopro a").digest()[:6], "big")
    generator = torch.Generator().manual_seed(noise)
    torch.testing.assert_close(found[3], restore(entry.model, x, "ancestral", 2, 0.9, samples=3, generator=generator))


def test_each_picture_is_restored_once_and_scored_as_it_is_on_disk(root, entry, scorer, tmp_path, monkeypatch):
    test, rows = open_set("gopro", root, complete=False), rows_of([entry])
    ledger, failures = finish(test, rows, tmp_path, scorer)
    assert failures == [] and len(pictures(tmp_path)) == 6
    for pair in test.pairs:
        x = to_model(read_image(pair.blurry))[None]
        expected = draws(entry, x, f"{test.identity} {pair.name}")
        for row in rows[2:]:
            path = paper.picture_path(tmp_path, test, row, pair)
            restored = read_image(path)
            assert float((to_model(restored) - expected[row.samples][0]).abs().max()) <= 1.01 / 255  # 8 bit
            scores = ledger.get(paper.score_key(test, row, pair))
            assert scores["psnr"] == pytest.approx(float(psnr(restored[None], read_image(pair.sharp)[None])), abs=1e-4)
    monkeypatch.setattr(paper, "draws", lambda *_: pytest.fail("restored again"))
    before = ledger.path.read_bytes()
    again, _ = finish(test, rows, tmp_path, scorer)
    assert again.path.read_bytes() == before


def test_a_picture_of_ours_that_a_power_cut_emptied_is_made_anew(root, entry, tmp_path):
    test, rows = open_set("gopro", root, complete=False, limit=1), rows_of([entry])
    finish(test, rows, tmp_path)
    lost = pictures(tmp_path)[0]
    whole = lost.read_bytes()
    lost.write_bytes(b"")
    (tmp_path / "scores.jsonl").unlink()
    _, failures = finish(test, rows, tmp_path)
    assert len(failures) == 1 and "removed: the same command restores it anew" in failures[0]
    _, failures = finish(test, rows, tmp_path)
    assert failures == [] and lost.read_bytes() == whole
    assert len(list(root.rglob("test/*/blur/*.png"))) == 3  # nothing of the data was removed


def test_realblur_without_opencv_is_said_at_once(root, monkeypatch):
    monkeypatch.setattr(paper, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="opencv-python-headless.*--align plain"):
        open_set("realblur_j", root, complete=False)
    assert open_set("realblur_j", root, complete=False, protocol="plain").protocol == "plain"


def test_a_metric_that_comes_later_needs_no_restoring(root, entry, tmp_path):
    test, rows = open_set("gopro", root, complete=False), rows_of([entry])
    finish(test, rows, tmp_path)
    ledger, _ = finish(test, rows, tmp_path, Scorer(metrics=("psnr", "ssim")), restoring=False)
    for row in rows[1:]:
        assert set(ledger.get(paper.score_key(test, row, test.pairs[0]))) == {"psnr", "ssim"}
    assert ledger.get(paper.score_key(test, rows[0], test.pairs[0])) == {}  # sharp against itself says nothing


def test_another_setting_has_its_own_pictures_and_scores(root, entry, tmp_path):
    test = open_set("gopro", root, complete=False)
    finish(test, rows_of([entry]), tmp_path)
    other = replace(entry, setting=replace(SETTING, steps=3))
    ledger, _ = finish(test, rows_of([other]), tmp_path)
    assert len(pictures(tmp_path)) == 12
    one, two = (ledger.get(paper.score_key(test, rows_of([e])[2], test.pairs[0])) for e in (entry, other))
    assert one != two and set(one) == {"psnr"}
    gamma = open_set("gopro", root, "blur_gamma", complete=False)
    assert all(ledger.get(paper.score_key(gamma, row, pair)) == {} for row in rows_of([entry]) for pair in gamma.pairs)
    finish(gamma, rows_of([entry]), tmp_path)
    assert len(pictures(tmp_path)) == 18


@pytest.mark.parametrize("name", ["realblur_j", "kohler"])
def test_other_protocols(name, root, entry, tmp_path):
    test = open_set(name, root, complete=False)
    ledger, failures = finish(test, rows_of([entry])[:2], tmp_path, Scorer(metrics=("psnr", "ssim")), restoring=False)
    assert failures == []
    blurry = rows_of([])[1]
    for pair in test.pairs:
        scores = ledger.get(paper.score_key(test, blurry, pair))
        truths = [read_image(p) for p in (pair.sharp if isinstance(pair.sharp, tuple) else (pair.sharp,))]
        expected = paper.PROTOCOLS[test.protocol](read_image(pair.blurry), truths)
        assert scores["psnr"] == pytest.approx(expected["psnr"], abs=1e-4)


def test_what_fails_is_named_and_the_rest_goes_on(root, entry, tmp_path):
    folder = tmp_path / "pairs"
    for side in ("blur", "sharp"):
        (folder / side).mkdir(parents=True)
        for name in "abcde":
            write_image(
                folder / side / f"{name}.png", torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(ord(name)))
            )
    (folder / "blur" / "b.png").write_text("not a picture")
    write_image(folder / "sharp" / "c.png", torch.rand(3, 20, 24))
    model = entry.model

    def check(path, x, config):
        if path.name == "d.png":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if path.name == "e.png":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    ledger, failures = finish(open_folder(folder), rows_of([entry]), tmp_path / "out", check=check)
    text = "\n".join(failures)
    assert (
        len(failures) == 4
        and "b.png: not a picture" in text
        and "sizes differ" in text
        and text.count("not enough memory") == 2
    )
    assert len(pictures(tmp_path / "out")) == 4  # of a and c, two rows each
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        entry.model.guidance.forward = lambda x: (_ for _ in ()).throw(RuntimeError("a mistake of ours"))
        finish(open_folder(folder), rows_of([replace(entry, model=model, seed=9)]), tmp_path / "out2")


# --- metrics ------------------------------------------------------------------------------------------------------


def test_unavailable_metrics_have_their_reasons(monkeypatch):
    def unavailable(*_):
        raise MetricUnavailable("no weights here")

    monkeypatch.setitem(METRICS, "lpips", unavailable)
    scorer = Scorer()
    assert scorer.metrics == ("psnr", "ssim") and scorer.unavailable["lpips"] == "no weights here"
    assert "--niqe-parameters" in scorer.unavailable["niqe"]
    assert Scorer(metrics=("psnr",)).unavailable["ssim"] == "not asked for"
    with pytest.raises(ValueError, match="unknown metric 'vmaf'; known: lpips, niqe"):
        Scorer(metrics=("vmaf",))


def test_lpips_and_niqe_are_scored(tmp_path, entry, monkeypatch):
    monkeypatch.setitem(METRICS, "lpips", lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    models = [
        Pristine(torch.full((36,), v, dtype=torch.float64), torch.eye(36, dtype=torch.float64), "test", False)
        for v in (0.0, 1.0)
    ]
    generator = torch.Generator().manual_seed(0)
    for side in ("blur", "sharp"):
        for name, h in (("large", 200), ("small", 40)):
            write_image(tmp_path / "pairs" / side / f"{name}.png", torch.rand(3, h, 100, generator=generator))
    test, rows = open_folder(tmp_path / "pairs"), rows_of([])
    names = []
    for pristine in models:
        scorer = Scorer(pristine, metrics=("lpips", "niqe"))
        names.append(scorer.stored("niqe"))
        ledger, failures = finish(test, rows, tmp_path, scorer)
        assert failures == []
    sharp, blurry = (ledger.get(paper.score_key(test, row, test.pairs[0])) for row in rows)
    assert set(sharp) == set(names) and sharp[names[0]] != sharp[names[1]]  # another model, another value, both kept
    assert blurry["lpips"] == pytest.approx(1 / 3, abs=0.02)
    small = ledger.get(paper.score_key(test, rows[1], test.pairs[1]))
    assert "at least 96x96" in small[names[0]] and isinstance(small["lpips"], float)


def test_distances_of_sets_are_kept_and_of_the_pictures_that_are_there(root, entry, tmp_path, monkeypatch):
    calls = []

    def stand_in(estimates, truth, *_):
        calls.append((len(estimates), len(truth)))
        if len(estimates) < 2:
            raise ValueError("two pictures are needed")
        return {"fid": 1.5, "kid": 0.25}

    monkeypatch.setattr(paper, "set_distances", stand_in)
    test, rows = open_set("gopro", root, complete=False), rows_of([entry])
    ledger, _ = finish(test, rows, tmp_path)
    scorer = Scorer(metrics=("psnr", "fid", "kid"))
    score = lambda row, scorer=scorer: paper.score_whole_set(test, row, tmp_path, ledger, scorer)
    assert score(rows[0]) == {} and score(rows[0], Scorer(metrics=("psnr",))) == {}
    assert score(rows[2]) == score(rows[2]) == {"fid": 1.5, "kid": 0.25, "pictures": 3} and calls == [(3, 3)]
    assert score(rows[2], Scorer(metrics=("kid",))) == {"kid": 0.25, "pictures": 3}
    paper.picture_path(tmp_path, test, rows[2], test.pairs[0]).unlink()
    assert score(rows[2])["pictures"] == 2 and calls[-1] == (2, 2)  # other pictures, another distance
    paper.picture_path(tmp_path, test, rows[2], test.pairs[1]).unlink()
    assert score(rows[2]) == dict.fromkeys(SET_METRICS, "two pictures are needed")

    def unreachable(*_):
        calls.append("download")
        raise MetricUnavailable("no network")

    monkeypatch.setattr(paper, "set_distances", unreachable)
    assert score(rows[1]) == score(rows[3]) == {} and calls[-2:] == [(1, 1), "download"]  # tried once
    assert scorer.unavailable["fid"] == scorer.unavailable["kid"] == "no network"


# --- the command, as a user types it ------------------------------------------------------------------------------


def command(weights, root, *more) -> list[str]:
    return [
        "paper",
        "--weights",
        f"tiny={weights}",
        "--root",
        str(root),
        "--incomplete",
        "--out",
        "out",
        "--device",
        "cpu",
        "--steps",
        "2",
        "--max-noise",
        "0.9",
        "--samples",
        "2",
        "--metrics",
        "psnr",
        "ssim",
        *map(str, more),
    ]


@pytest.fixture
def typed(monkeypatch):
    """typed(arguments, folder) -> exit status, in that folder, with the arguments where results files look for them."""

    def run(arguments: list[str], folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["tinymsg", *arguments])
        return main(arguments)

    return run


def test_a_miniature_run_gives_the_papers_table(root, weights, typed, tmp_path, capsys):
    assert typed(command(weights, root), tmp_path) == 0
    text = (tmp_path / "out/table.md").read_text()
    assert text in capsys.readouterr().out
    mean = text.split("## Mean over")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in mean if line.startswith("|")]
    assert rows[0] == ["method", "whose", "LPIPS ↓", "NIQE ↓", "FID ↓", "KID×1000 ↓", "PSNR ↑", "SSIM ↑"]
    assert rows[7] == ["Ren 2023", "published: Ren 2023, Table 3", "0.104", "2.94", "8.41", "2.39", "28.81", "0.881"]
    assert [row[0] for row in rows[8:]] == ["blurry", "tiny", "tiny-SA"] and {row[1] for row in rows[8:]} == {
        "**ours**"
    }
    results = json.loads((tmp_path / "out/table.json").read_text())
    assert list(results["sets"]) == list(paper.SETS) and results["failures"] == [] and results["missing"] == {}
    cell = results["mean"]["tiny"]["psnr"]
    assert cell["mean"] == pytest.approx(
        np.mean([results["sets"][s]["rows"]["tiny"]["psnr"]["mean"] for s in paper.SETS]), abs=1e-3
    )
    assert (
        cell["sets"] == 4
        and cell["low"] < cell["mean"] < cell["high"]
        and rows[9][6].startswith(f"{cell['mean']:.2f} ± ")
    )
    assert rows[9][6].endswith("*") and "only 3 of 1111 pictures" in text
    assert results["settings"]["tiny"]["setting"] == {
        "sampler": "ancestral",
        "steps": 2,
        "max_noise": 0.9,
        "samples": 2,
    }
    assert (
        results["command"].startswith("python -m tinymsg paper --weights tiny=")
        and "opencv-python-headless" in results["packages"]
    )
    # Written anew without the weights' work
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("table.md", "table.json", "scores.jsonl")}
    assert typed(command(weights, root), tmp_path) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


def test_sets_that_are_not_there_are_said_and_means_are_partial(root, weights, typed, tmp_path, capsys):
    half = tmp_path / "half"
    half.mkdir()
    os.symlink(root / "GOPRO_Large", half / "GOPRO_Large")
    assert typed(command(weights, half, "--sets", "gopro", "hide", "--limit", "2"), tmp_path) == 0
    assert "hide is left out" in capsys.readouterr().err
    text = (tmp_path / "out/table.md").read_text()
    assert (
        "(1 of 4 sets) *" in text
        and "**Not there, and no number is guessed for it**" in text
        and "data_scripts/hide.py" in text
    )
    assert "only 2 of 1111 pictures" in text
    with pytest.raises(SystemExit):
        typed(["paper"], tmp_path)
    assert typed(command(weights, tmp_path / "nowhere"), tmp_path) == 2
    assert "none of the test sets is there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--sets", "goprp"], "unknown data set 'goprp'"),
        (["--niqe-parameters", "missing.mat"], "no NIQE parameters at missing.mat"),
        (["--inception", "missing.pth"], "missing.pth cannot be read as weights"),
        (["--metrics", "vmaf"], "unknown metric 'vmaf'"),
        (["--grid"], "leave out --steps and --max-noise"),
        (["--pairs", "here", "there/here"], "have the same name"),
        (["--weights", "{weights}", "a={weights}", "a={weights}"], "the name is taken"),
        (["--weights", "nothing.safetensors"], "no weights"),
    ],
)
def test_mistakes_are_one_sentence(more, sentence, root, weights, typed, tmp_path, capsys):
    for folder in ("here", "there/here"):
        write_image(tmp_path / folder / "input/a.png", torch.rand(3, 16, 16))
        write_image(tmp_path / folder / "target/a.png", torch.rand(3, 16, 16))
    assert typed(command(weights, root, *(m.format(weights=weights) for m in more)), tmp_path) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_weights_without_a_setting_ask_for_one(root, weights, typed, tmp_path, capsys):
    arguments = [a for a in command(weights, root) if a not in ("--steps", "2", "--max-noise", "0.9", "--samples")]
    assert typed(arguments, tmp_path) == 2
    assert "give --grid, or --steps and --max-noise" in capsys.readouterr().err


def test_a_shipped_name_is_the_shipped_weights_and_the_table_says_whose_setting_it_is(root, typed, tmp_path):
    tmp_path.joinpath("scenes-guided").write_text("a file of that name is not what is loaded")
    own = model_card("scenes-guided")["setting"] | {"samples": 1}
    for more, changed, said in (
        ([], {}, "the weights' own"),
        (["--sampler", "ddim"], {"sampler": "ddim"}, "sampler given, the rest the weights' own"),
        (
            ["--steps", "2", "--max-noise", "0.5"],
            {"steps": 2, "max_noise": 0.5},
            "steps and max_noise given, the rest the weights' own",
        ),
        (
            ["--steps", "2", "--max-noise", "0.5", "--sampler", "ddim"],
            {"sampler": "ddim", "steps": 2, "max_noise": 0.5},
            "given",
        ),
    ):
        arguments = [
            "paper",
            "--root",
            str(root),
            "--incomplete",
            "--out",
            "out",
            "--device",
            "cpu",
            "--sets",
            "gopro",
            "--samples",
            "1",
            "--metrics",
            "psnr",
            "--no-restore",
            *more,
        ]
        assert typed(arguments, tmp_path) == 0
        found = json.loads((tmp_path / "out/table.json").read_text())["settings"]["scenes-guided"]
        assert found["sha256"] == model_card("scenes-guided")["sha256"]
        assert (
            found["chosen"] == said
            and found["setting"] == own | changed
            and f"({said})" in (tmp_path / "out/table.md").read_text()
        )


def test_own_pairs_and_only_scoring(weights, root, typed, tmp_path, capsys):
    for i in range(3):
        pixels = miniatures.sharp_pixels(i, (24, 24))
        miniatures.write_picture(tmp_path / "mine/target" / f"{i}.png", pixels)
        miniatures.write_picture(tmp_path / "mine/input" / f"{i}.png", miniatures.blurred(pixels))
    own = ["--pairs", "mine"]
    assert typed(command(weights, root, *own, "--no-restore"), tmp_path) == 0
    results = json.loads((tmp_path / "out/table.json").read_text())
    assert (
        results["sets"]["mine"]["rows"]["tiny"]["psnr"] == {"n": 0, "why": "no picture was scored"}
        and results["mean"] == {}
    )
    assert "PSNR of mine: no picture was scored" in (tmp_path / "out/table.md").read_text()
    assert not (tmp_path / "out/pictures").exists()
    (tmp_path / "mine/input/1.png").write_text("broken")
    assert typed(command(weights, root, *own), tmp_path) == 1
    results = json.loads((tmp_path / "out/table.json").read_text())
    assert results["sets"]["mine"]["rows"]["tiny"]["psnr"]["n"] == 2 and "1.png" in results["failures"][0]
    assert "(2 of 3 pictures)" in (tmp_path / "out/table.md").read_text()
    assert "1 pictures failed" in capsys.readouterr().out


def test_every_metric_of_the_paper_in_one_run(weights, root, typed, tmp_path, monkeypatch):
    """LPIPS, FID and KID by stand-ins for their networks; NIQE by a file like the authors', then by a model of one's own."""
    monkeypatch.setitem(METRICS, "lpips", lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    register_colours(monkeypatch)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (224, 264, 3), dtype=np.uint8)
        miniatures.write_picture(tmp_path / "mine/target" / f"{i}.png", miniatures.blurred(pixels, 3))
        miniatures.write_picture(tmp_path / "mine/input" / f"{i}.png", miniatures.blurred(pixels, 9))
    np.savez(tmp_path / "authors.npz", mu_pris_param=np.ones((1, 36)), cov_pris_param=np.eye(36))
    arguments = [*command(weights, root, "--pairs", "mine", "--niqe-parameters"), "authors.npz"]
    arguments[arguments.index("--metrics") + 1 : arguments.index("--pairs")] = [
        "lpips",
        "niqe",
        "fid",
        "kid",
        "psnr",
        "ssim",
    ]
    assert typed(arguments, tmp_path) == 0
    results = json.loads((tmp_path / "out/table.json").read_text())
    rows = results["sets"]["mine"]["rows"]
    assert results["unavailable"] == {} and set(rows["tiny-SA"]) == {"lpips", "niqe", "fid", "kid", "psnr", "ssim"}
    assert list(rows["sharp"]) == ["niqe"] and all(cell["n"] == 3 for row in rows.values() for cell in row.values())
    assert rows["tiny"]["fid"]["mean"] > 0.1 > abs(rows["blurry"]["fid"]["mean"])  # this blur keeps the mean colour
    assert "authors.npz" in results["niqe"]["source"] and "‡" not in (tmp_path / "out/table.md").read_text()
    monkeypatch.setattr(paper, "draws", lambda *_: pytest.fail("restored again"))
    arguments[-1] = str(root / "GOPRO_Large")
    assert typed(arguments, tmp_path) == 2  # too small to fit a model to
    for i in range(40):
        miniatures.write_picture(
            tmp_path / "sharp" / f"{i}.png", np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        )
    arguments[-1] = "sharp"
    assert typed(arguments, tmp_path) == 0
    again = json.loads((tmp_path / "out/table.json").read_text())
    assert again["niqe"]["fitted_here"] and again["sets"]["mine"]["rows"]["tiny"]["niqe"] != rows["tiny"]["niqe"]
    assert (
        "‡" in (tmp_path / "out/table.md").read_text()
        and again["sets"]["mine"]["rows"]["tiny"]["fid"] == rows["tiny"]["fid"]
    )


def test_ctrl_c_is_safe(root, weights, typed, tmp_path, monkeypatch, capsys):
    real, count = paper.draws, []

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(paper, "draws", interrupted)
    assert typed(command(weights, root), tmp_path) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert typed(command(weights, root), tmp_path) == 0
    assert len(count) == 3 + 13 - 2


def test_killed_in_mid_run_and_resumed_the_table_is_the_same_to_the_byte(root, weights, typed, tmp_path):
    """SIGKILL of a real process; then the same command again, uninterrupted."""
    arguments = command(weights, root)
    assert typed(arguments, tmp_path / "whole") == 0
    killed = tmp_path / "killed"
    killed.mkdir()
    scores = killed / "out" / "scores.jsonl"
    whole = len((tmp_path / "whole/out/scores.jsonl").read_text().splitlines())
    environment = os.environ | ALLOCATOR | {"PYTHONPATH": str(Path(paper.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tinymsg", *arguments],
        cwd=killed,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (scores.exists() and scores.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= scores.read_bytes().count(b"\n") < whole and not (killed / "out/table.md").exists()
    with open(scores, "ab") as file:
        file.write(b'{"key": {"set": "gop')  # as a power cut leaves it
    assert typed(arguments, killed) == 0
    for name in ("table.md", "table.json"):
        assert (killed / "out" / name).read_bytes() == (tmp_path / "whole/out" / name).read_bytes(), name
    assert [p.read_bytes() for p in pictures(killed / "out")] == [
        p.read_bytes() for p in pictures(tmp_path / "whole/out")
    ]
    with Image.open(pictures(killed / "out")[0]) as image:
        assert image.mode == "RGB" and image.size == (48, 32)

"""The paper's evaluation on miniature sets: restored once, scored by each set's protocol, resumable, never mixed."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch
from stand_ins import register_colours

from tinymsg.cli import main, testsets
from tinymsg.cli.testsets import open_folder, open_set
from tinymsg.data import read_image, write_image
from tinymsg.evaluate import METRICS, MetricUnavailable, psnr, sample_and_mean
from tinymsg.model import model_card
from tinymsg.paper import protocol as paper
from tinymsg.paper.niqe import Pristine
from tinymsg.paper.protocol import Evaluation, Row
from tinymsg.sample import Setting

SETTING = Setting("ancestral", steps=2, max_noise=0.9, samples=3)
REFERENCES = [Row("sharp"), Row("blurry")]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The four sets, and Köhler's."""
    folder = tmp_path_factory.mktemp("data")
    for make in (miniatures.make_gopro, miniatures.make_hide, miniatures.make_realblur, miniatures.make_reds):
        make(folder)
    miniatures.make_kohler(folder, images=1, kernels=2)
    return folder


@pytest.fixture
def row(tiny_model) -> Row:
    return Row("tiny", tiny_model(), "0" * 64, SETTING)


def rows_of(row: Row) -> list[Row]:
    return [*REFERENCES, row.averaging(1), row.averaging(3)]


def finish(test, rows, out, metrics=("psnr",), pristine=None, **options) -> tuple[Evaluation, list[str]]:
    evaluation = Evaluation(out, metrics, pristine)
    return evaluation, [sentence for sentence in evaluation.run(test, rows, **options) if sentence]


def pictures(out: Path) -> list[Path]:
    return sorted((out / "pictures").rglob("*.png"))


def no_restoring(monkeypatch) -> None:
    monkeypatch.setattr(paper, "sample_and_mean", lambda *_: pytest.fail("restored again"))


# --- sets and rows ------------------------------------------------------------------------------------------------


def test_sets_have_their_protocols_and_say_what_they_are(root, monkeypatch):
    protocols = [open_set(name, root, complete=False).protocol for name in (*paper.MEAN_SETS, "kohler")]
    assert protocols == ["plain", "plain", "realblur", "plain", "kohler"]
    gopro, gamma = (open_set("gopro", root, blur, complete=False) for blur in ("blur", "blur_gamma"))
    assert gopro.total == 1111 and len(gopro.pairs) == 3 and gopro.identity != gamma.identity
    assert open_set("hide", root, "blur_gamma", complete=False).identity == "hide"  # GoPro's choice is no other set's
    assert open_set("gopro", root, complete=False, protocol="shift").protocol == "shift"
    for name, folder, words in (("gopro", root, "1111"), ("hide", root / "nowhere", "hide.py")):
        with pytest.raises(ValueError, match=words):
            open_set(name, folder)
    monkeypatch.setattr(testsets, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="opencv.*--align plain"):
        open_set("realblur_j", root, complete=False)
    assert open_set("realblur_j", root, complete=False, protocol="plain").protocol == "plain"


def test_a_limit_is_spread_evenly(root):
    pairs = open_set("hide", root, complete=False).pairs
    for limit, expected in ((2, pairs[::2]), (9, pairs)):
        assert open_set("hide", root, limit=limit, complete=False).pairs == expected


def test_a_folder_of_ones_own(root, tmp_path):
    folder = root / "GOPRO_Large/test"
    mine = open_folder(folder, "blur_gamma")
    assert len(mine.pairs) == mine.total == 3 and mine.name == "test" and mine.protocol == "plain"
    assert mine.pairs[0].blurry.match("blur_gamma/000047.png") and mine.identity != open_folder(folder).identity
    for name in ("input/a.png", "target/a.png", "input/a.bmp", "target/a.bmp"):
        miniatures.write_picture(tmp_path / name, miniatures.sharp_pixels(0, (24, 24)))
    with pytest.raises(ValueError, match="one name"):  # their pictures and scores would be mixed
        open_folder(tmp_path)


def test_what_decides_a_rows_pictures_is_in_its_key_and_what_does_not_is_not(row, tiny_model, root, tmp_path):
    test = open_set("gopro", root, complete=False)
    setting, elsewhere = row.setting, tiny_model().to("meta")  # another device draws other noise from the same seed
    changes = [
        row.averaging(1),
        replace(row, weights="2" * 64),
        replace(row, seed=1),
        replace(row, model=elsewhere),
        *(replace(row, setting=replace(setting, **c)) for c in ({"steps": 3}, {"max_noise": 0.5}, {"sampler": "ddim"})),
    ]
    evaluation = Evaluation(tmp_path, ("psnr",))
    path, *others = (evaluation.picture(test, r, test.pairs[0]) for r in (row, *changes))
    assert len({json.dumps(r.key()) for r in (row, *changes)}) == len({path, *others}) == 8
    assert evaluation.picture(test, replace(row, label="other name"), test.pairs[0]) == path
    assert row.averaging(3).label == "tiny-SA" and row.averaging(1).label == "tiny"


# --- restoring ------------------------------------------------------------------------------------------------------


def test_each_picture_is_restored_once_and_scored_as_it_is_on_disk(root, row, tmp_path, monkeypatch):
    test, rows = open_set("gopro", root, complete=False), rows_of(row)
    evaluation, failures = finish(test, rows, tmp_path, ("psnr", "ssim"))
    assert failures == [] and len(pictures(tmp_path)) == 6
    for pair in test.pairs:
        one, mean = (read_image(evaluation.picture(test, r, pair)) for r in rows[2:])
        assert not torch.equal(one, mean)
        for restored, r in ((one, rows[2]), (mean, rows[3])):
            scores = evaluation.scores(test, r, pair)
            assert scores["psnr"] == pytest.approx(float(psnr(restored[None], read_image(pair.sharp)[None])), abs=1e-4)
    # Alone, and of pictures that lie elsewhere, a single sample is the same one
    (tmp_path / "elsewhere").symlink_to(root)
    finish(open_set("gopro", tmp_path / "elsewhere", complete=False), [rows[2]], tmp_path / "alone")
    assert [p.read_bytes() for p in pictures(tmp_path / "alone")] == [
        evaluation.picture(test, rows[2], pair).read_bytes() for pair in test.pairs
    ]
    no_restoring(monkeypatch)
    before = evaluation.ledger.path.read_bytes()
    finish(test, rows, tmp_path, ("psnr", "ssim"))
    assert evaluation.ledger.path.read_bytes() == before


def test_a_metric_that_comes_later_needs_no_restoring(root, row, tmp_path, monkeypatch):
    test, rows = open_set("gopro", root, complete=False), rows_of(row)
    finish(test, rows, tmp_path)
    no_restoring(monkeypatch)
    evaluation, _ = finish(test, rows, tmp_path, ("psnr", "ssim"), restoring=False)
    assert all(set(evaluation.scores(test, r, test.pairs[0])) == {"psnr", "ssim"} for r in rows[1:])
    assert evaluation.scores(test, rows[0], test.pairs[0]) == {}  # sharp against itself says nothing


def test_another_setting_or_set_has_its_own_pictures_and_scores(root, row, tmp_path):
    test, gamma = (open_set("gopro", root, blur, complete=False) for blur in ("blur", "blur_gamma"))
    other = replace(row, setting=replace(SETTING, steps=3))
    finish(test, rows_of(row), tmp_path)
    evaluation, _ = finish(test, rows_of(other), tmp_path)
    assert len(pictures(tmp_path)) == 12
    one, two = (evaluation.scores(test, r, test.pairs[0]) for r in (row, other))
    assert one != two and set(one) == set(two) == {"psnr"}
    for another in (gamma, replace(test, protocol="shift")):
        assert evaluation.scores(another, row, test.pairs[0]) == {}


@pytest.mark.parametrize("name", ["realblur_j", "kohler"])
def test_other_protocols(name, root, tmp_path):
    test = open_set(name, root, complete=False)
    evaluation, failures = finish(test, REFERENCES, tmp_path)
    assert failures == []
    for pair in test.pairs:
        truths = [read_image(path) for path in pair.sharp_paths]
        expected = paper.PROTOCOLS[name.removesuffix("_j")](read_image(pair.blurry), truths)["psnr"]
        assert evaluation.scores(test, REFERENCES[1], pair)["psnr"] == pytest.approx(expected, abs=1e-4)


def test_what_fails_is_named_and_the_rest_goes_on(row, tmp_path, monkeypatch):
    folder = tmp_path / "pairs"
    for side in ("blur", "sharp"):
        for name in "abcde":
            value = {"d": 0.0, "e": 1.0}.get(name)
            write_image(
                folder / side / f"{name}.png",
                torch.rand(3, 24, 24) if value is None else torch.full((3, 24, 24), value),
            )
    (folder / "blur" / "b.png").write_text("not a picture")
    write_image(folder / "sharp" / "c.png", torch.rand(3, 20, 24))

    def too_large(model, x, *rest):
        if x.std() == 0:
            raise torch.OutOfMemoryError("out of memory") if x.max() < 0 else MemoryError
        return sample_and_mean(model, x, *rest)

    monkeypatch.setattr(paper, "sample_and_mean", too_large)
    _, failures = finish(open_folder(folder), rows_of(row), tmp_path / "out")
    assert [Path(sentence.split(":")[0]).name for sentence in failures] == ["b.png", "c.png", "d.png", "e.png"]
    assert len(pictures(tmp_path / "out")) == 4  # of a and c, two rows each

    def mistake(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(paper, "sample_and_mean", mistake)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        finish(open_folder(folder), [replace(row, seed=9)], tmp_path / "out")


# --- metrics ------------------------------------------------------------------------------------------------------


def test_unavailable_metrics_have_their_reasons(tmp_path, monkeypatch):
    def unavailable(*_):
        raise MetricUnavailable("no weights here")

    monkeypatch.setitem(METRICS, "lpips", unavailable)
    evaluation = Evaluation(tmp_path)
    assert evaluation.metrics == ("psnr", "ssim") and evaluation.unavailable["lpips"] == "no weights here"
    assert "--niqe-parameters" in evaluation.unavailable["niqe"]
    assert set(Evaluation(tmp_path, ("psnr",)).unavailable) == {"lpips", "niqe", "fid", "kid", "ssim"}


def test_lpips_and_niqe_are_scored(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "lpips", lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    generator = torch.Generator().manual_seed(0)
    for side in ("blur", "sharp"):
        for name, h in (("large", 200), ("small", 40)):
            write_image(tmp_path / "pairs" / side / f"{name}.png", torch.rand(3, h, 100, generator=generator))
    test = open_folder(tmp_path / "pairs")
    (large, small), found = test.pairs, []
    for mean in (0.0, 1.0):
        model = Pristine(torch.full((36,), mean, dtype=torch.float64), torch.eye(36, dtype=torch.float64), f"m{mean}")
        evaluation, failures = finish(test, REFERENCES, tmp_path, ("lpips", "niqe"), model)
        assert failures == []
        found.append([evaluation.scores(test, r, large) for r in REFERENCES])
    assert set(found[0][0]) == {"niqe"} and found[0][0] != found[1][0]  # another model, another value
    assert found[0][1]["lpips"] == pytest.approx(1 / 3, abs=0.02)
    scores = evaluation.scores(test, REFERENCES[1], small)
    assert "96x96" in scores["niqe"] and isinstance(scores["lpips"], float)


def test_distances_of_sets_are_kept_and_of_the_pictures_that_are_there(root, row, tmp_path, monkeypatch):
    calls = []

    def stand_in(estimates, truth, *_):
        calls.append(len(estimates))
        if len(estimates) < 2:
            raise ValueError("two pictures are needed")
        return {"fid": 1.5, "kid": 0.25}

    monkeypatch.setattr(paper, "set_distances", stand_in)
    test = open_set("gopro", root, complete=False)
    evaluation, _ = finish(test, [row], tmp_path, ("psnr", "fid", "kid"))
    score = evaluation.score_whole_set
    assert score(test, REFERENCES[0]) == {} and Evaluation(tmp_path, ("psnr",)).score_whole_set(test, row) == {}
    expected = {"fid": {"mean": 1.5, "n": 3}, "kid": {"mean": 0.25, "n": 3}}
    assert score(test, row) == score(test, row) == expected and calls == [3]
    evaluation.picture(test, row, test.pairs[0]).unlink()
    assert score(test, row)["fid"]["n"] == 2 and calls == [3, 2]  # other pictures, another distance
    evaluation.picture(test, row, test.pairs[1]).unlink()
    assert score(test, row)["kid"] == {"n": 0, "why": "two pictures are needed"}

    def unreachable(*_):
        calls.append("download")
        raise MetricUnavailable("no network")

    monkeypatch.setattr(paper, "set_distances", unreachable)
    assert score(test, REFERENCES[1]) == score(test, row) == {} and calls[-1] == "download" != calls[-2]  # tried once
    assert evaluation.unavailable["fid"] == evaluation.unavailable["kid"] == "no network"


# --- the command, as a user types it ------------------------------------------------------------------------------


def command(weights, root, *more) -> list[str]:
    text = "--incomplete --out out --device cpu --steps 2 --max-noise 0.9 --samples 2 --metrics psnr ssim"
    return ["paper", "--weights", f"tiny={weights}", "--root", str(root), *text.split(), *map(str, more)]


@pytest.fixture
def typed(monkeypatch):
    """typed(arguments, folder) -> exit status, in that folder, with the arguments where results files look for them."""

    def run(arguments: list[str], folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["tinymsg", *arguments])
        return main(arguments)

    return run


def written(folder: Path) -> tuple[dict, str]:
    return json.loads((folder / "out/table.json").read_text()), (folder / "out/table.md").read_text()


def test_a_miniature_run_gives_the_papers_table(root, weights, typed, tmp_path, capsys):
    assert typed(command(weights, root), tmp_path) == 0
    results, text = written(tmp_path)
    assert text in capsys.readouterr().out
    lines = text.split("## Mean over")[1].split("\n## ")[0].splitlines()
    rows = {cells[1].strip(): cells for line in lines if len(cells := line.split("|")) == 10}
    assert list(rows)[-4:] == ["Ren 2023", "blurry", "tiny", "tiny-SA"] and "**ours**" in rows["tiny"][2]
    assert list(results["sets"]) == list(paper.MEAN_SETS) and results["failures"] == [] and results["missing"] == {}
    cell = results["mean"]["tiny"]["psnr"]
    values = [results["sets"][name]["rows"]["tiny"]["psnr"]["mean"] for name in paper.MEAN_SETS]
    assert cell["mean"] == pytest.approx(np.mean(values), abs=1e-3) and cell["low"] < cell["mean"] < cell["high"]
    assert rows["tiny"][7].strip().startswith(f"{cell['mean']:.2f} ± ") and rows["tiny"][7].strip().endswith("*")
    setting = {"sampler": "ancestral", "steps": 2, "max_noise": 0.9, "grid": "linear", "samples": 2, "start": None}
    assert results["settings"]["tiny"]["setting"] == setting and "opencv-python-headless" in results["packages"]
    # Written anew without the weights' work
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("table.md", "table.json", "scores.jsonl")}
    assert typed(command(weights, root), tmp_path) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


def test_sets_that_are_not_there_are_said_and_means_are_partial(root, weights, typed, tmp_path, capsys):
    half = tmp_path / "half"
    half.mkdir()
    os.symlink(root / "GOPRO_Large", half / "GOPRO_Large")
    assert typed(command(weights, half, "--sets", "gopro", "hide", "--limit", "2"), tmp_path) == 0
    assert "hide" in capsys.readouterr().err
    results, text = written(tmp_path)
    assert "data_scripts/hide.py" in results["missing"]["hide"] and results["missing"]["hide"] in text
    assert "(1 of 4 sets) *" in text and results["sets"]["gopro"]["pictures"] == 2
    assert typed(command(weights, tmp_path / "nowhere"), tmp_path) == 2


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--sets", "goprp"], "goprp"),
        (["--niqe-parameters", "missing.mat"], "missing.mat"),
        (["--grid"], "leave out --steps"),
        (["--pairs", "here", "there/here"], "same name"),
        (["--weights", "a={weights}", "a={weights}"], "ROW="),
        (["--weights", "nothing.safetensors"], "nothing.safetensors"),
    ],
)
def test_mistakes_are_one_sentence(more, word, root, weights, typed, tmp_path, capsys):
    for folder in ("here", "there/here"):
        write_image(tmp_path / folder / "input/a.png", torch.rand(3, 16, 16))
        write_image(tmp_path / folder / "target/a.png", torch.rand(3, 16, 16))
    assert typed(command(weights, root, *(m.format(weights=weights) for m in more)), tmp_path) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_weights_without_a_setting_ask_for_one(root, weights, typed, tmp_path, capsys):
    arguments = [a for a in command(weights, root) if a not in ("--steps", "2", "--max-noise", "0.9", "--samples")]
    assert typed(arguments, tmp_path) == 2
    assert "--grid" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--steps", "2", "--max-noise", "0.5", "--sampler", "ddim"]])
def test_shipped_weights_have_a_setting_and_the_command_line_wins(more, root, typed, tmp_path):
    tmp_path.joinpath("scenes-guided").write_text("a file of that name is not what is loaded")
    text = "--incomplete --out out --device cpu --sets gopro --samples 1 --metrics psnr --no-restore"
    assert typed(["paper", "--root", str(root), *text.split(), *more], tmp_path) == 0
    found, card = written(tmp_path)[0]["settings"]["guided"], model_card("scenes-guided")
    given = {"steps": 2, "max_noise": 0.5, "sampler": "ddim"} if more else {}
    assert found["sha256"] == card["sha256"]
    assert found["setting"] == {"grid": "linear", "start": None} | card["setting"] | given | {"samples": 1}
    assert all(name in found["chosen"] for name in given) and ("own" in found["chosen"]) == (not more)


def test_own_pairs_and_only_scoring(weights, root, typed, tmp_path):
    for i in range(3):
        pixels = miniatures.sharp_pixels(i, (24, 24))
        miniatures.write_picture(tmp_path / "mine/target" / f"{i}.png", pixels)
        miniatures.write_picture(tmp_path / "mine/input" / f"{i}.png", miniatures.blurred(pixels))
    arguments = command(weights, root, "--pairs", "mine")
    assert typed([*arguments, "--no-restore"], tmp_path) == 0
    results, _ = written(tmp_path)
    assert results["sets"]["mine"]["rows"]["tiny"]["psnr"]["n"] == 0 and results["mean"] == {}
    assert not (tmp_path / "out/pictures").exists()
    (tmp_path / "mine/input/1.png").write_text("broken")
    assert typed(arguments, tmp_path) == 1
    results, text = written(tmp_path)
    assert results["sets"]["mine"]["rows"]["tiny"]["psnr"]["n"] == 2 and "1.png" in results["failures"][0]
    assert "(2 of 3 pictures)" in text


def test_every_metric_of_the_paper_in_one_run(weights, root, typed, tmp_path, monkeypatch):
    """LPIPS, FID and KID by stand-ins for their networks; NIQE by a file like the authors'."""
    monkeypatch.setitem(METRICS, "lpips", lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    register_colours(monkeypatch)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (224, 264, 3), dtype=np.uint8)
        miniatures.write_picture(tmp_path / "mine/target" / f"{i}.png", miniatures.blurred(pixels, 3))
        miniatures.write_picture(tmp_path / "mine/input" / f"{i}.png", miniatures.blurred(pixels, 9))
    np.savez(tmp_path / "authors.npz", mu_pris_param=np.ones((1, 36)), cov_pris_param=np.eye(36))
    more = "--pairs mine --niqe-parameters authors.npz --metrics lpips niqe fid kid psnr ssim"
    assert typed(command(weights, root, *more.split()), tmp_path) == 0
    results, text = written(tmp_path)
    rows = results["sets"]["mine"]["rows"]
    assert results["unavailable"] == {} and set(rows["tiny-SA"]) == {"lpips", "niqe", "fid", "kid", "psnr", "ssim"}
    assert list(rows["sharp"]) == ["niqe"] and all(cell["n"] == 3 for row in rows.values() for cell in row.values())
    assert rows["tiny"]["fid"]["mean"] > 0.1 > abs(rows["blurry"]["fid"]["mean"])  # this blur keeps the mean colour
    assert "authors.npz" in results["niqe"] and results["niqe"] in text


def test_stopped_and_resumed_the_table_is_the_same(root, weights, typed, tmp_path, monkeypatch):
    real, count = paper.sample_and_mean, []

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    arguments = command(weights, root, "--sets", "gopro", "hide")
    assert typed(arguments, tmp_path / "whole") == 0
    monkeypatch.setattr(paper, "sample_and_mean", interrupted)
    assert typed(arguments, tmp_path / "stopped") == 130
    with open(tmp_path / "stopped/out/scores.jsonl", "ab") as file:
        file.write(b'{"key": {"set": "gop')  # as a kill leaves it
    assert typed(arguments, tmp_path / "stopped") == 0
    assert len(count) == 3 + 7 - 2  # what had been finished was not restored again
    assert written(tmp_path / "stopped") == written(tmp_path / "whole")

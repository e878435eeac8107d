"""The choice of deblur's default: the rule, what it is measured on, and the command."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from tinymsg.cli import main
from tinymsg.data import SAMPLES, Contents, photo, real_pair
from tinymsg.evaluate import measure, psnr, read_results
from tinymsg.model import save_model
from tinymsg.sample import Setting
from tinymsg.studies import photographs as study

ROOT = Path(__file__).parents[1]


def row(sharp: float, real: list[float], lpips: float, **setting) -> dict:
    """What `score` says of a setting, for a set of two pairs."""
    scores = {"real": {"psnr": real, "lpips": [lpips] * 2}, "blurred": {"psnr": [25.0], "lpips": [lpips]}}
    scores["sharp"] = {"psnr": [sharp], "lpips": [0.0]}
    return {"setting": dataclasses.asdict(Setting(**setting)), "scores": scores, "seconds_a_megapixel": 1.0}


BLURRY = row(100.0, [20.0, 24.0], 0.4)
GOOD = row(37.0, [21.0, 25.0], 0.30, steps=5)


def test_a_row_is_safe_if_it_harms_nobody():
    assert study.is_safe(GOOD, BLURRY) and study.gain(GOOD, BLURRY) == pytest.approx(1.0)
    assert not study.is_safe(row(34.0, [21.0, 25.0], 0.3), BLURRY)  # sharp photographs suffer
    assert not study.is_safe(row(37.0, [23.0, 23.4], 0.3), BLURRY)  # one real pair does
    assert not study.is_safe(row(37.0, [19.8, 24.1], 0.3), BLURRY)  # nothing is gained


def test_the_real_pairs_of_the_package_are_those_that_the_stored_rows_are_of():
    rows = read_results(ROOT / "notebooks/results/photographs.json")["untrained"]["blurry"]["scores"]["real"]["psnr"]
    found = []
    for path in sorted((SAMPLES / "blur").iterdir()):
        y0, x = real_pair(path.stem)
        assert y0.shape == x.shape == (1, 3, 448, 448)
        found += measure(x, y0, ("psnr",))["psnr"]
    assert found == pytest.approx(rows, abs=1e-3)
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*.png")) < 4e6
    assert "CC BY 4.0" in (SAMPLES / "README.md").read_text()
    with pytest.raises(ValueError, match="flower"):
        real_pair("../sharp/flower")


def test_the_rule_takes_the_nearest_by_lpips_of_what_is_safe_and_gains():
    timid, harmful = row(40.0, [20.1, 24.1], 0.20, steps=5), row(30.0, [22.0, 26.0], 0.10, steps=5)
    smooth, long = row(38.0, [21.2, 25.2], 0.35, steps=1), row(37.0, [21.0, 25.0], 0.25, steps=20)
    rows = [timid, harmful, smooth, GOOD, long]
    assert study.choose(rows, BLURRY, 8) == (GOOD, True)
    assert study.choose(rows, BLURRY, 1) == (smooth, True)
    assert study.choose(rows, BLURRY, 40) == (long, True)
    assert study.choose([harmful, row(20.0, [9.0, 9.0], 0.9)], BLURRY, 8) == (harmful, False)
    # Means of samples count every one of them, and so does the network whose answer is refined
    assert study.choose([smooth, row(37.0, [21.0, 25.0], 0.2, steps=1, start="first")], BLURRY, 1) == (smooth, True)
    assert study.choose([smooth, row(37.0, [21.0, 25.0], 0.2, steps=3, samples=4)], BLURRY, 8) == (smooth, True)


def test_the_setting_does_not_depend_on_a_single_real_pair():
    """As docs/results says: chosen without any one of the eight pairs, the default's setting is the same."""
    results = read_results(ROOT / "notebooks/results/photographs.json")
    rows, blurry = results["rows"][results["default"]], results["untrained"]["blurry"]
    chosen = results["quality"][results["default"]]["default"]["setting"]
    for left_out in range(len(blurry["scores"]["real"]["psnr"])):
        *fewer, fewer_blurry = copy.deepcopy([*rows, blurry])
        for each in (*fewer, fewer_blurry):
            for values in each["scores"]["real"].values():
                del values[left_out]
        assert study.choose(fewer, fewer_blurry, study.EVALUATIONS["default"])[0]["setting"] == chosen


def test_every_quality_has_candidates():
    settings = study.candidates("diffusion")
    assert len(set(settings)) == len(settings)
    for most in study.EVALUATIONS.values():
        assert any(most / 3 < s.steps * s.samples <= most for s in settings)
    assert [s.steps for s in study.candidates("regression", "first")] == [1]
    refining = set(study.candidates("diffusion", "first")) - set(settings)
    assert {setting.start for setting in refining} == {"first"}


def test_unsharp_mask_sharpens_what_is_soft_and_leaves_what_is_even():
    assert study.unsharp_mask(torch.full((1, 3, 32, 32), 0.3)) == pytest.approx(0.3, abs=1e-4)
    sharp = photo("chelsea")[None, :, 100:200, 100:200].float() / 127.5 - 1
    soft = study.convolve((sharp + 1) / 2, study.gaussian(1.0)) * 2 - 1
    assert psnr(study.unsharp_mask(soft), sharp) > psnr(soft, sharp) + 0.5


def test_richardson_lucy_undoes_the_blur_that_it_guesses():
    sharp = photo("chelsea")[None, :, 100:164, 100:164].float() / 127.5 - 1
    soft = study.convolve((sharp + 1) / 2, study.gaussian(2.0)) * 2 - 1
    inside = [image[..., 12:-12, 12:-12] for image in (study.richardson_lucy(soft), soft, sharp)]
    assert psnr(inside[0], inside[2]) > psnr(inside[1], inside[2]) + 0.5


def test_the_sets_are_the_same_every_time_and_sharp_stays_sharp():
    contents = Contents([photo("chelsea"), photo("coffee")], "two")
    real = (torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16))
    sets, again = (study.photograph_sets(real, contents, size=64, count=3) for _ in range(2))
    assert {name: y0.shape[0] for name, (y0, _) in sets.items()} == {"real": 1, "blurred": 3, "sharp": 2}
    for name, pair in sets.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, again[name], strict=True))
    assert torch.equal(*sets["sharp"]) and not torch.equal(*sets["blurred"])


def test_the_command_scores_chooses_and_says_by_what_rule(tiny_model, tmp_path, monkeypatch):
    for folder in ("pairs/sharp", "pairs/blur", "kodak"):
        (tmp_path / folder).mkdir(parents=True)
    picture = Image.fromarray(photo("coffee").permute(1, 2, 0).numpy()[:96, :128])
    for name in ("kodak/a.png", "kodak/b.png"):
        picture.save(tmp_path / name)
    picture.save(tmp_path / "pairs/sharp/a.png")
    picture.resize((64, 48)).resize((128, 96)).save(tmp_path / "pairs/blur/a.png")
    picture.save(tmp_path / "pairs/sharp/b.png")
    picture.save(tmp_path / "pairs/blur/b.png")
    save_model(tiny_model(scales=(1, 2)), tmp_path / "tiny.safetensors")
    monkeypatch.setattr(
        study, "candidates", lambda kind, start: [Setting(steps=1), Setting(steps=2, samples=2, start=start)]
    )
    out = tmp_path / "photographs.json"
    save_model(tiny_model(scales=(), kind="regression"), tmp_path / "other.safetensors")
    weights = [f"guided={tmp_path}/tiny.safetensors", f"regression={tmp_path}/other.safetensors"]
    said = ["photographs", "--weights", *weights, "--pairs", f"{tmp_path}/pairs"]
    said += ["--sharp", f"{tmp_path}/kodak", "--size", "64", "--pairs-size", "64", "--count", "2", "--out", str(out)]
    assert main(said) == 0
    results = read_results(out)
    assert {len(results["rows"]["guided"]), len(results["untrained"])} == {2, 3}
    assert set(results["quality"]["guided"]) == {"fast", "default", "best"}
    assert results["quality"]["guided"]["fast"]["setting"]["steps"] == 1
    assert results["rows"]["guided"][1]["setting"]["start"] == f"{tmp_path}/other.safetensors"
    together = [row for rows in results["rows"].values() for row in rows]
    best, _ = study.choose(together, results["untrained"]["blurry"], study.EVALUATIONS["default"])
    assert best in results["rows"][results["default"]]
    assert results["untrained"]["blurry"]["scores"]["sharp"]["psnr"] == [100.0, 100.0]
    assert results["rule"]["LEAST_SHARP"] == study.LEAST_SHARP

"""The arms on pictures: fair to each other, scored as the contracts say."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch

from tinymsg import evaluate
from tinymsg.studies import pictures, toy
from tinymsg.data import make_contents
from tinymsg.model import build_model, count_parameters
from tinymsg.studies.pictures import ARMS, PARTS, PICTURES, score_pictures
from tinymsg.evaluate import read_results
from tinymsg.studies.trials import PictureTrial, Study, get_study, headline_table, paired_differences

ROOT = Path(__file__).resolve().parents[1]
SMALL = dataclasses.replace(
    PICTURES,
    widths=(16, 16, 16, 16),
    guidance_width=8,
    guidance_blocks=1,
    crop=16,
    batch=2,
    content_count=4,
    steps=8,
    warmup=2,
)
drawn_once = cache(make_contents)  # every arm's pictures are the same, and drawing them takes longer than all else here


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for module in (evaluate, pictures):
        monkeypatch.setattr(module, "make_contents", drawn_once)
    monkeypatch.setattr(pictures, "SIZE", 16)
    monkeypatch.setattr(pictures, "VALIDATION_COUNT", 3)
    monkeypatch.setattr(pictures, "SETTING", evaluate.Setting("ancestral", 2, 0.99, 2))


def trial(arm: str, seed: int = 0) -> PictureTrial:
    config = toy.variant((ARMS | PARTS).get(arm, {}), None, seed, SMALL)
    return PictureTrial(
        arm, seed, dataclasses.replace(config, content_count=min(config.content_count, 8))
    )  # 500 take a minute


def test_equal_parameters():
    guided = count_parameters(build_model(PICTURES))
    for arm, changes in ARMS.items():
        assert abs(count_parameters(build_model(toy.variant(changes, base=PICTURES))) / guided - 1) < 0.01, arm


def test_the_setting_is_the_one_that_was_chosen_on_the_validation_split():
    chosen = read_results(ROOT / "notebooks/results/scores.json")["setting"]
    source = (ROOT / "tinymsg/pictures.py").read_text()
    assert (
        f'Setting("{chosen["sampler"]}", steps={chosen["steps"]}, max_noise={chosen["max_noise"]}, samples={chosen["samples"]})'
        in source
    )


@pytest.mark.parametrize("arm", ["blurry", *ARMS, *PARTS])
def test_every_arm_trains_and_is_scored(arm):
    entry = trial(arm).run(3)
    assert list(entry["scores"]) == list(pictures.DOMAINS)
    score = entry["scores"]["gopro_like"]
    assert [len(score["per_image"][m]) for m in ("psnr", "psnr_mean", "spectral", "spectral_mean")] == [3] * 4
    assert score["psnr"]["mean"] == pytest.approx(sum(score["per_image"]["psnr"]) / 3, abs=0.01)
    if arm != "blurry":
        assert [step for step, _ in entry["validation"]] == list(range(1, 9))


def test_all_arms_of_a_seed_see_the_same_crops_in_the_same_order():
    plain, guided = (pictures.training_batches(trial(arm).config)(3) for arm in ("plain", "guided"))
    assert all(torch.equal(a, b) for a, b in zip(plain, guided, strict=True))
    other = pictures.training_batches(trial("plain", seed=1).config)(3)
    assert not torch.equal(plain[0], other[0])


def test_training_and_test_scenes_differ():
    train = pictures.training_batches(SMALL).pairs.contents
    test = evaluate.domain_pairs("gopro_like", "scenes", 4, evaluate.TEST_SEED).contents
    assert not any(torch.equal(a, b) for a in train.images for b in test.images)


def test_the_blurry_input_is_scored_against_the_sharp_picture():
    y0, x = evaluate.domain_pairs("jpeg", "scenes", 3, evaluate.TEST_SEED).crops(torch.arange(3), 16)
    expected = evaluate.measure(x, y0, ("psnr",))["psnr"]
    assert score_pictures(None, "jpeg", "scenes", 3)["per_image"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_blurry_is_paired_with_every_seed():
    entry = lambda arm, seed, values: {
        "arm": arm,
        "seed": seed,
        "kernels": None,
        "steps": 9,
        "scores": {"d": {"per_image": {"psnr": values}}},
    }
    runs = [entry("blurry", 0, [1.0, 2.0]), entry("a", 0, [3.0, 5.0]), entry("a", 1, [1.0, 1.0])]
    assert paired_differences(runs, "a", "blurry", "d", metric="psnr").tolist() == [[2.0, 3.0], [0.0, -1.0]]
    runs.append(entry("a", 0, [0.0, 0.0]) | {"steps": 18})
    assert paired_differences(runs, "a", "blurry", "d", metric="psnr", steps=9).tolist() == [[2.0, 3.0], [0.0, -1.0]]


@pytest.mark.parametrize("name", ["pictures", "parts"])
def test_equal_budgets(name):
    study: Study = get_study(name)
    budgets = {(t.config.batch, t.config.crop, t.config.steps - t.config.head_start) for t in study.trials(2, 100)}
    assert {batch for batch, _, _ in budgets} == {PICTURES.batch} and {crop for _, crop, _ in budgets} == {
        PICTURES.crop
    }
    assert {steps for _, _, steps in budgets} == ({100, 200} if name == "pictures" else {100})


def test_the_headline_counts_only_the_studys_own_budget():
    """Three arms and regression at two seeds, plus one training twice as long, which must not enter."""

    def entry(arm, seed, steps, value):
        scores = {"psnr": {"mean": value}, "per_image": {"psnr": [value - 1, value + 1]}}
        return {
            "arm": arm,
            "seed": seed,
            "kernels": None,
            "steps": steps,
            "scores": dict.fromkeys(pictures.DOMAINS, scores),
        }

    runs = [entry("blurry", 0, 9, 20.0), entry("guided", 0, 18, 99.0)]
    runs += [
        entry(arm, seed, 9, value + seed)
        for arm, value in zip(ARMS, (25.0, 22.0, 24.0, 23.5), strict=True)
        for seed in (0, 1)
    ]
    lines = headline_table({"runs": runs, "steps": 9}).splitlines()
    assert (
        lines[2]
        == "| gopro_like | 20.00 | 25.50 | 22.50 | 24.50 | 24.00 | +2.00 [+2.00, +2.00] | +0.50 [+0.50, +0.50] |"
    )
    assert len(lines) == 2 + len(pictures.DOMAINS)

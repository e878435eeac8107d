"""The arms on pictures: fair to each other, scored as the contracts say."""

from functools import cache
from pathlib import Path

import pytest
import torch

from tinymsg import evaluate
from tinymsg.data import make_contents
from tinymsg.evaluate import read_results
from tinymsg.model import build_model, count_parameters
from tinymsg.sample import Setting
from tinymsg.studies import pictures, toy
from tinymsg.studies.pictures import ARMS, PICTURES, score_pictures
from tinymsg.studies.trials import STUDIES, Trial

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = pictures.SETTING
SMALL = PICTURES.change(
    widths=(16, 16, 16, 16), guidance_width=8, guidance_blocks=1, crop=16, batch=2, content_count=4, steps=8, warmup=2
)
drawn_once = cache(make_contents)  # every arm's pictures are the same, and drawing them takes longer than all else here


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for module in (evaluate, pictures):
        monkeypatch.setattr(module, "make_contents", drawn_once)
    monkeypatch.setattr(pictures, "SIZE", 16)
    monkeypatch.setattr(pictures, "VALIDATION_COUNT", 3)
    monkeypatch.setattr(pictures, "SETTING", Setting("ancestral", 2, 0.99, samples=2))


def trial(arm: str, seed: int = 0) -> Trial:
    return Trial(arm, seed, toy.variant(ARMS.get(arm, {}), None, seed, SMALL))


def test_equal_parameters():
    guided = count_parameters(build_model(PICTURES.network))
    for arm, changes in ARMS.items():
        network = toy.variant(changes, base=PICTURES).network
        assert abs(count_parameters(build_model(network)) / guided - 1) < 0.01, arm


def test_the_setting_is_the_one_that_was_chosen_on_the_validation_split():
    assert Setting(**read_results(ROOT / "notebooks/results/scores.json")["setting"]) == CHOSEN


@pytest.mark.parametrize("arm", ["blurry", *ARMS])
def test_every_arm_trains_and_is_scored(arm):
    entry = trial(arm).run(3)
    assert list(entry["scores"]) == list(pictures.DOMAINS)
    score = entry["scores"]["gopro_like"]
    assert [len(score["per_image"][m]) for m in ("psnr", "psnr_mean", "spectral", "spectral_mean")] == [3] * 4
    assert score["psnr"]["mean"] == pytest.approx(sum(score["per_image"]["psnr"]) / 3, abs=0.01)
    if arm != "blurry":
        assert [step for step, _ in entry["validation"]] == list(range(1, 9))


def test_all_arms_of_a_seed_see_the_same_crops_in_the_same_order():
    plain, guided = (pictures.training_batches(trial(arm).recipe)(3) for arm in ("plain", "guided"))
    assert all(torch.equal(a, b) for a, b in zip(plain, guided, strict=True))
    other = pictures.training_batches(trial("plain", seed=1).recipe)(3)
    assert not torch.equal(plain[0], other[0])


def test_training_and_test_scenes_differ():
    train = pictures.training_batches(SMALL).pairs.contents
    test = evaluate.domain_pairs("gopro_like", "scenes", 4, evaluate.TEST_SEED).contents
    assert not any(torch.equal(a, b) for a in train.images for b in test.images)


def test_the_blurry_input_is_scored_against_the_sharp_picture():
    y0, x = evaluate.domain_pairs("jpeg", "scenes", 3, evaluate.TEST_SEED).crops(torch.arange(3), 16)
    expected = evaluate.measure(x, y0, ("psnr",))["psnr"]
    assert score_pictures(None, "jpeg", "scenes", 3)["per_image"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_equal_budgets():
    budgets = {(t.recipe.training.batch, t.recipe.training.crop) for t in STUDIES["pictures"].trials(2, 100)}
    assert budgets == {(PICTURES.training.batch, PICTURES.training.crop)}
    steps = {t.recipe.training.steps: t.seed for t in STUDIES["pictures"].trials(2, 100)}
    assert set(steps) == {100, 200} and steps[200] == 0

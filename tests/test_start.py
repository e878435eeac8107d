"""Lesson 00: its exercises tell right from wrong, and its set-up check says what is missing and how to mend it."""

import importlib.util

import course
import pytest
import torch

from tinymsg import data, sample
from tinymsg.course.checks import check, check_value
from tinymsg.model import pretrained, pretrained_names

LESSON = course.HERE / "00_start.ipynb"


def cell(part: str) -> str:
    """The one code cell that has `part` in it."""
    (source,) = [c.source for c in course.read(LESSON).cells if c.cell_type == "code" and part in c.source]
    return source


def run(part: str, **names) -> dict:
    exec(cell(part), names)
    return names


def range_check(answer) -> None:
    run("check(my_to_model,", check=check, data=data, torch=torch, sharp=torch.rand(3, 8, 8), my_to_model=answer)


def test_the_range_exercise_accepts_the_solution(capsys):
    range_check(lambda values: values * 2 - 1)
    assert "✓" in capsys.readouterr().out
    range_check(run("def my_to_model")["my_to_model"])
    assert "○ my_to_model: not attempted yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda values: (values + 1) / 2, "the way back"),
        (lambda values: values * 2, "the middle is not"),
        (lambda values: values - 0.5, "the width is not"),
        (lambda values: None, "is a `return` missing"),
    ],
)
def test_the_range_exercise_knows_the_usual_mistakes(wrong, message):
    with pytest.raises(AssertionError, match=message):
        range_check(wrong)


@pytest.mark.parametrize(
    ("name", "right", "too_small", "too_large"), [("my_gain", -0.1, -4.7, 1.7), ("my_share", 0.64, 0.36, 0.8)]
)
def test_the_exercises_that_ask_for_a_number(name, right, too_small, too_large, capsys):
    given = {"check_value": check_value, "gain": {"short motion": 1.77, "camera shake": -0.1}}
    run(f"check_value({name},", **given, **{name: None})
    run(f"check_value({name},", **given, **{name: right})
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["○", "✓"]
    for wrong, message in ((too_small, "too small"), (too_large, "too large")):
        with pytest.raises(AssertionError, match=message):
            run(f"check_value({name},", **given, **{name: wrong})


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("matplotlib", "skimage") else find(name)
    )
    with pytest.raises(AssertionError, match="matplotlib.*skimage.*make lab"):
        run("PARTS = ")


def weights_check(capsys, **changes) -> str:
    school = data.SyntheticPairs(data.scene_contents(2, seed=0), "gopro_like", seed=0)
    names = {
        "torch": torch,
        "school": school,
        "sample": sample,
        "setting": sample.Setting(),
        "device": "cpu",
        "pretrained": pretrained,
        "pretrained_names": lambda: ["scenes-guided"],
    }
    run("def try_weights", **(names | changes))
    return capsys.readouterr().out


def test_weights_that_do_not_load_or_do_not_deblur_are_told_apart(capsys, tiny_model):
    def damaged(name, device):
        raise ValueError(f"{name}.safetensors is not a readable safetensors file")

    assert "git checkout" in weights_check(capsys, pretrained=damaged)
    assert "does not deblur" in weights_check(capsys, pretrained=lambda name, device: tiny_model())
    assert "loads and deblurs" in weights_check(capsys)
    with pytest.raises(AssertionError, match="no weights"):
        weights_check(capsys, pretrained_names=lambda: [])


def test_all_shipped_weights_are_tried():
    tried = [
        line.split()[0]
        for c in course.read(LESSON).cells
        if "def try_weights" in c.source
        for line in c.outputs[0].text.splitlines()
    ]
    assert tried == pretrained_names()

"""Lesson 00: its exercises tell right from wrong, and its set-up check says what is missing and how to mend it."""

import importlib.util

import course
import pytest
import torch

from tinymsg import blur, data, sample
from tinymsg.course.checks import check, check_value
from tinymsg.evaluate import measure
from tinymsg.model import model_card, pretrained, pretrained_names

LESSON = course.HERE / "00_start.ipynb"


def cell(part: str) -> str:
    """The one code cell that has `part` in it."""
    (source,) = [c.source for c in course.read(LESSON).cells if c.cell_type == "code" and part in c.source]
    return source


def run(part: str, **names) -> dict:
    exec(cell(part), names)
    return names


def reblur_check(answer) -> None:
    expose = run("def expose", blur=blur)["expose"]
    y0, path = torch.rand(1, 3, 24, 24) * 2 - 1, torch.tensor([[[-2.0, 0, 0], [0, 1, 0], [2, 0, 0]]])
    run(
        "check(my_reblur,",
        **{"check": check, "data": data, "blur": blur, "expose": expose, "my_reblur": answer, "y0": y0, "path": path},
        answers={"short motion": y0.roll(3, -1)},
        paths={"camera shake": path.flip(1)},
    )


def reblurred(y0_hat, path):
    return blur.gamma_encode(blur.average_frames(blur.gamma_decode((y0_hat + 1) / 2), path)) * 2 - 1


def test_the_reblur_exercise_accepts_the_solution(capsys):
    reblur_check(reblurred)
    assert "✓" in capsys.readouterr().out
    reblur_check(run("def my_reblur")["my_reblur"])
    assert "○ my_reblur: not attempted yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (blur.average_frames, "the numbers of the file"),
        (lambda y0_hat, path: (reblurred(y0_hat, path) + 1) / 2, "back to the network's range"),
        (lambda y0_hat, path: reblurred(2 * y0_hat - 1, path), "call `to_display` first"),
        (lambda y0_hat, path: None, "is a `return` missing"),
    ],
)
def test_the_reblur_exercise_knows_the_usual_mistakes(wrong, message):
    with pytest.raises(AssertionError, match=message):
        reblur_check(wrong)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("my_contrast", 0.333, {2 / 3: "subtract the darkest", 0.5: "a third of it", 0.0: "one period and a half"}),
        ("my_level", 0.707, {0.5: "a quarter is picture", 0.9: "too large"}),
    ],
)
def test_the_exercises_that_ask_for_a_number(name, right, wrong, capsys):
    run(f"check_value({name},", check_value=check_value, **{name: None})
    run(f"check_value({name},", check_value=check_value, **{name: right})
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["○", "✓"]
    for value, message in wrong.items():
        with pytest.raises(AssertionError, match=message):
            run(f"check_value({name},", check_value=check_value, **{name: value})


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("matplotlib", "skimage") else find(name)
    )
    with pytest.raises(AssertionError, match="matplotlib.*skimage.*make lab"):
        run("PARTS = ")


def weights_check(capsys, **changes) -> str:
    names = {
        "torch": torch,
        "data": data,
        "sample": sample,
        "device": "cpu",
        "pretrained": pretrained,
        "model_card": model_card,
        "measure": measure,
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

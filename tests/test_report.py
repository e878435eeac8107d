"""The table: means, intervals, what is partial, what is ours and what is not."""

from pathlib import Path

import pytest
import torch

from tinymsg.data import Pair
from tinymsg.paper.ledger import Ledger
from tinymsg.paper.niqe import Pristine
from tinymsg.paper.protocol import SETS, Row, Scorer, TestSet, score_key
from tinymsg.paper.published import PUBLISHED
from tinymsg.paper.report import collect, describe, markdown, mean_over_sets, stratified_interval

ROWS = [Row("sharp", "sharp"), Row("blurry", "blurry")]


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "scores.jsonl")


def made(ledger: Ledger, name: str, values: list, total: int | None = None, metric: str = "psnr") -> TestSet:
    """A set with these scores of its blurry pictures."""
    pairs = tuple(Pair(f"{i:02d}", Path("s"), Path("b")) for i in range(len(values)))
    test = TestSet(name, name.title(), name, pairs, total or len(values), "plain")
    for pair, value in zip(pairs, values, strict=True):
        if value is not None:
            ledger.add(score_key(test, ROWS[1], pair), {metric: value})
    return test


def results(ledger, tests, scorer=None, whole=None, **more) -> dict:
    scorer = scorer or Scorer(metrics=("psnr",))
    sets, values = {}, {}
    for test in tests:
        sets[test.name], values[test.name] = collect(test, ROWS, ledger, scorer, whole or {})
    return {
        "sets": sets,
        "mean": mean_over_sets(sets, values),
        "missing": {},
        "settings": {},
        "niqe": None,
        "pieces": None,
        "unavailable": scorer.unavailable,
        "failures": [],
    } | more


def cells(text: str, section: str, row: str) -> list[str]:
    """Cells of the first row of that name in a section of the Markdown."""
    lines = text.split(f"## {section}")[1].split("\n## ")[0].splitlines()
    return next([c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {row} |"))


def test_each_set_has_equal_weight(ledger):
    tests = [
        made(ledger, name, [value] * count)
        for name, value, count in zip(SETS, (20.0, 24.0, 28.0, 32.0), (2, 30, 3, 5), strict=True)
    ]
    found = results(ledger, tests)
    assert found["mean"]["blurry"]["psnr"] == {"mean": 26.0, "low": 26.0, "high": 26.0, "sets": 4, "subset": False}
    text = markdown(found)
    assert cells(text, "Mean", "blurry") == ["blurry", "**ours**", "–", "–", "–", "–", "26.00 ± 0.00", "–"]
    assert "sharp | **ours**" not in text  # nothing was scored of them


def test_intervals():
    generator = torch.Generator().manual_seed(0)
    lists = [torch.randn(n, generator=generator, dtype=torch.float64) * s for n, s in ((100, 3.0), (400, 1.0))]
    low, high = stratified_interval(lists)
    half = 1.96 * (9 / 100 + 1 / 400) ** 0.5 / 2  # of the mean of two independent means
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert describe([3.0]) == {"mean": 3.0, "n": 1} and describe([2.0, 4.0])["low"] == 2.0


def test_partial_means_and_subsets_are_marked(ledger):
    tests = [made(ledger, "gopro", [20.0, 22.0], total=1111), made(ledger, "hide", [24.0, 26.0, None])]
    text = markdown(results(ledger, tests, missing={"reds_val300": "not downloaded: run data_scripts/reds.py"}))
    assert cells(text, "Mean", "blurry")[6] == "23.00 ± 1.00 (2 of 4 sets) *"
    assert cells(text, "Gopro", "blurry")[6].startswith("21.00 ±") and "**only 2 of 1111 pictures**" in text
    assert cells(text, "Hide", "blurry")[6].endswith("(2 of 3 pictures)")
    assert (
        "## reds_val300\n\n**Not there, and no number is guessed for it**: not downloaded: run data_scripts/reds.py."
        in text
    )


def test_of_reds_only_one_part_counts(ledger):
    tests = [
        made(ledger, "reds", [20.0, 20.0]),
        made(ledger, "reds_val300", [30.0, 30.0]),
        made(ledger, "mine", [10.0, 10.0]),
    ]
    assert results(ledger, tests)["mean"]["blurry"]["psnr"]["mean"] == 30.0
    assert results(ledger, tests[:1])["mean"]["blurry"]["psnr"]["mean"] == 20.0
    assert results(ledger, tests[2:])["mean"] == {}  # one's own set is in no mean of the paper's


def test_set_metrics_and_reasons(ledger):
    tests = [made(ledger, "gopro", [20.0, 22.0]), made(ledger, "hide", [20.0, 22.0])]
    scorer = Scorer(metrics=("psnr", "fid", "kid"))
    found = results(ledger, tests, scorer, {"blurry": {"fid": 14.0, "kid": "two pictures are needed", "pictures": 2}})
    text = markdown(found)
    assert cells(text, "Mean", "blurry")[4:6] == ["14.00 (2 of 4 sets)", "–"]
    assert (
        "- KID of Gopro: two pictures are needed." in text and "- LPIPS has no values of ours: not asked for." in text
    )
    assert "on whole pictures" in text and "on pieces of 64x64" in markdown(found | {"pieces": 64})


@pytest.mark.parametrize("fitted", [True, False])
def test_a_niqe_model_of_ones_own_is_marked(ledger, fitted):
    pristine = Pristine(torch.zeros(36, dtype=torch.float64), torch.eye(36, dtype=torch.float64), "the model", fitted)
    scorer = Scorer(pristine, metrics=("niqe",))
    test = made(ledger, "gopro", [3.0, 5.0], metric=scorer.stored("niqe"))
    text = markdown(results(ledger, [test], scorer, niqe={"source": "the model", "fitted_here": fitted}))
    cell = cells(text, "Gopro", "blurry")[3]
    assert cell == f"4.00 ± {1.0:.2f}" + (" ‡" if fitted else "")
    assert ("not comparable with published values" in text.split("NIQE by")[1].splitlines()[0]) == fitted
    assert "NIQE by tinymsg.paper.niqe with the model" in text


def test_published_rows_are_marked_and_stand_before_ours(ledger):
    text = markdown(results(ledger, [made(ledger, name, [20.0, 21.0]) for name in SETS], failures=["x.png: damaged"]))
    for section, name in (("Mean", "mean"), ("Gopro", "gopro"), ("Hide", "hide"), ("Realblur_J", "realblur_j")):
        lines = [
            line for line in text.split(f"## {section}")[1].split("\n## ")[0].splitlines() if line.startswith("| ")
        ][1:]
        assert [line.split("|")[1].strip() for line in lines] == [row.method for row in PUBLISHED[name]] + ["blurry"]
        assert all("published:" in line for line in lines[:-1]) and "**ours**" in lines[-1]
    assert cells(text, "Mean", "Ren 2023")[2:] == ["0.104", "2.94", "8.41", "2.39", "28.81", "0.881"]
    assert cells(text, "Realblur_J", "DiffIR")[6] == "–"
    assert "- Failed: x.png: damaged" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {9}

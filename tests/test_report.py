"""The table: means, intervals, what is partial, what is ours and what is not."""

from pathlib import Path

import pytest
import torch

from tinymsg.data import Pair
from tinymsg.paper.protocol import MEAN_SETS, Evaluation, Row, TestSet
from tinymsg.paper.published import PUBLISHED
from tinymsg.paper.report import collect, describe, markdown, mean_over_sets

ROWS = [Row("sharp"), Row("blurry")]


@pytest.fixture
def evaluation(tmp_path) -> Evaluation:
    return Evaluation(tmp_path, ("psnr",))


def made(evaluation: Evaluation, name: str, values: list, total: int | None = None) -> dict:
    """The summary of a set with these PSNRs of its blurry pictures; a sentence, or None, where there is none."""
    pairs = tuple(Pair(f"{i:02d}", Path("s"), Path("b")) for i in range(len(values)))
    test = TestSet(name, name.title(), name, pairs, total or len(values), "plain")
    for pair, value in zip(pairs, values, strict=True):
        if value is not None:
            evaluation.ledger.add(
                {"set": name, "protocol": "plain", "image": pair.name, "row": "blurry"}, {"psnr": value}
            )
    return collect(evaluation, test, ROWS)


def results(evaluation: Evaluation, sets: dict[str, dict], **more) -> dict:
    empty = {"missing": {}, "settings": {}, "niqe": None, "failures": []}
    return empty | {"sets": sets, "mean": mean_over_sets(sets), "unavailable": evaluation.unavailable} | more


def lines(text: str, section: str) -> dict[str, list[str]]:
    """Cells of the rows of a section of the Markdown, by their first one."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split(f"## {section}")[1].splitlines()]
    end = next((i for i, row in enumerate(rows) if i > 4 and not row), len(rows))
    return {row[0]: row for row in rows[:end] if len(row) == 8}


def test_each_set_has_equal_weight(evaluation):
    counted = zip(MEAN_SETS, (20.0, 24.0, 28.0, 32.0), (2, 30, 3, 5), strict=True)
    sets = {name: made(evaluation, name, [value] * count) for name, value, count in counted}
    found = results(evaluation, sets)
    assert found["mean"]["blurry"]["psnr"] == {"mean": 26.0, "low": 26.0, "high": 26.0, "sets": 4, "subset": False}
    rows = lines(markdown(found), "Mean")
    assert rows["blurry"] == ["blurry", "**ours**", "–", "–", "–", "–", "26.00 ± 0.00", "–"]
    assert "sharp" not in rows  # nothing was scored of them


def test_intervals_of_independent_means_add_as_squares(evaluation):
    generator = torch.Generator().manual_seed(0)
    values = [(20 + torch.randn(n, generator=generator) * s).tolist() for n, s in ((100, 3.0), (400, 1.0))]
    sets = {name: made(evaluation, name, v) for name, v in zip(MEAN_SETS, values, strict=False)}
    cell = mean_over_sets(sets)["blurry"]["psnr"]
    half = 1.96 * (9 / 100 + 1 / 400) ** 0.5 / 2  # of the mean of two independent means
    assert (cell["high"] - cell["low"]) / 2 == pytest.approx(half, rel=0.15)
    assert describe([3.0]) == {"mean": 3.0, "n": 1} and describe([2.0, 4.0])["low"] == 2.0


def test_partial_means_and_subsets_are_marked(evaluation):
    sets = {
        "gopro": made(evaluation, "gopro", [20.0, 22.0], total=1111),
        "hide": made(evaluation, "hide", [24.0, 26.0, None, "too small"]),
        "mine": made(evaluation, "mine", ["too small"]),
    }
    text = markdown(results(evaluation, sets, missing={"reds_val300": "run reds.py"}, failures=["x.png: damaged"]))
    assert lines(text, "Mean")["blurry"][6] == "23.00 ± 0.71 (2 of 4 sets) *"
    assert lines(text, "Gopro")["blurry"][6].startswith("21.00 ±") and "2 of 1111 pictures" in text
    assert lines(text, "Hide")["blurry"][6].endswith("(2 of 4 pictures)")
    assert lines(text, "Mine")["blurry"][6] == "–" and "PSNR of Mine: too small" in text
    assert "## reds_val300" in text and "run reds.py" in text and "x.png: damaged" in text


def test_of_reds_only_one_part_counts(evaluation):
    values = {"reds": 20.0, "reds_val300": 30.0, "mine": 10.0}
    sets = {name: made(evaluation, name, [value, value]) for name, value in values.items()}
    assert mean_over_sets(sets)["blurry"]["psnr"]["mean"] == 30.0
    assert mean_over_sets({"reds": sets["reds"]})["blurry"]["psnr"]["mean"] == 20.0
    assert mean_over_sets({"mine": sets["mine"]}) == {}  # one's own set is in no mean of the paper's


def test_distances_of_sets_have_means_without_intervals(tmp_path, monkeypatch):
    evaluation = Evaluation(tmp_path, ("psnr", "fid", "kid"))
    distances = {"fid": {"mean": 14.0, "n": 2}, "kid": {"n": 0, "why": "two pictures are needed"}}
    monkeypatch.setattr(evaluation, "score_whole_set", lambda test, row: dict(distances))
    sets = {name: made(evaluation, name, [20.0, 22.0]) for name in ("gopro", "hide")}
    text = markdown(results(evaluation, sets))
    assert lines(text, "Mean")["blurry"][4:6] == ["14.00 (2 of 4 sets)", "–"]
    assert "KID of Gopro: two pictures are needed" in text


def test_published_rows_are_marked_and_stand_before_ours(evaluation):
    sets = {name: made(evaluation, name, [20.0, 21.0]) for name in MEAN_SETS}
    text = markdown(results(evaluation, sets))
    for section, name in (("Mean", "mean"), ("Gopro", "gopro"), ("Hide", "hide"), ("Realblur_J", "realblur_j")):
        _, _, *rows = lines(text, section).values()
        assert [row[0] for row in rows] == [row.method for row in PUBLISHED[name]] + ["blurry"]
        assert all("published:" in row[1] for row in rows[:-1]) and rows[-1][1] == "**ours**"
    assert lines(text, "Mean")["Ren 2023"][2:] == ["0.104", "2.94", "8.41", "2.39", "28.81", "0.881"]
    assert lines(text, "Realblur_J")["DiffIR"][6] == "–"

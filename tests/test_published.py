"""The published rows: what is known of them, said of each."""

import pytest

from tinymsg.paper.published import COLUMNS, PUBLISHED


def test_every_row_says_where_it_is_from_and_stands_once():
    counts = {"mean": 6, "gopro": 14, "hide": 13, "realblur_j": 11}
    assert {name: len(rows) for name, rows in PUBLISHED.items()} == counts
    for rows in PUBLISHED.values():
        assert len({row.method for row in rows}) == len(rows)
        for row in rows:
            assert len(row.source) > 5 and any(getattr(row, metric) is not None for metric in COLUMNS)
            assert 0 <= (row.ssim or 0) <= 1 and 0 <= (row.lpips or 0) < 1 and 20 < (row.psnr or 30) < 40


@pytest.mark.parametrize(
    ("name", "method", "values"),
    [
        ("mean", "Ren 2023", (0.104, 2.94, 8.41, 2.39, 28.81, 0.881)),
        ("gopro", "DvSR", (0.059, 3.39, 4.04, 0.98, 31.66, 0.948)),
        ("realblur_j", "DiffIR", (0.1541, None, None, None, None, None)),
    ],
)
def test_rows_are_read_column_by_column(name, method, values):
    (row,) = (row for row in PUBLISHED[name] if row.method == method)
    assert tuple(getattr(row, metric) for metric in COLUMNS) == values

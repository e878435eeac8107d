"""The published rows are those of the notes on the paper, typed a second time."""

import pytest

from tinymsg.paper.published import COLUMNS, PUBLISHED

TABLE_3 = """
DeblurGAN-v2 | 0.149 | 3.42 | 14.57 | 5.28 | 28.09 | 0.871
MPRNet | 0.140 | 3.70 | 20.22 | 8.49 | 29.78 | 0.897
UFormer | 0.133 | 3.65 | 18.99 | 8.13 | 30.06 | 0.903
Restormer | 0.139 | 3.69 | 19.90 | 8.36 | 30.00 | 0.895
Ren 2023, sample averaging | 0.124 | 3.64 | 14.36 | 6.79 | 29.98 | 0.902
Ren 2023 | 0.104 | 2.94 | 8.41 | 2.39 | 28.81 | 0.881
"""
GOPRO = """
sharp pictures | 0 | 3.21 | 0 | 0 | – | 1
HINet | .088 | 4.01 | 17.91 | 8.15 | 32.77 | .960
MPRNet | .089 | 4.09 | 20.18 | 9.10 | 32.66 | .959
MIMO-UNet+ | .091 | 4.03 | 18.05 | 8.17 | 32.45 | .957
DeblurGAN-v2 | .117 | 3.68 | 13.40 | 4.41 | 29.08 | .918
DvSR | .059 | 3.39 | 4.04 | 0.98 | 31.66 | .948
DvSR, sample averaging | .078 | 4.07 | 17.46 | 8.03 | 33.23 | .963
"""
HIDE = """
sharp pictures | 0 | 2.72 | 0 | 0 | – | 1
HINet | .120 | 3.20 | 15.17 | 7.33 | 30.33 | .932
MPRNet | .114 | 3.46 | 16.58 | 8.35 | 30.96 | .939
MIMO-UNet+ | .124 | 3.24 | 16.01 | 7.91 | 29.99 | .930
DeblurGAN-v2 | .159 | 2.96 | 15.51 | 6.97 | 27.51 | .885
DvSR | .089 | 2.69 | 5.43 | 1.61 | 29.77 | .922
DvSR, sample averaging | .092 | 2.93 | 6.37 | 2.40 | 30.07 | .928
"""
# model | GoPro | HIDE | RealBlur-J (PSNR/SSIM) | LPIPS GoPro | LPIPS RealBlur-J
POINTS = """
NAFNet-64 | 33.71/.967 | 31.32/.943 | 28.32/.857 | .0781 | .1688
Restormer | 32.92/.961 | 31.22/.942 | 28.96/.879 | .0841 | .1561
MPRNet | 32.66/.959 | 30.96/.939 | 28.70/.873 | .0886 | .1587
Stripformer | 33.08/.962 | 31.03/.940 | 28.82/.876 | .0771 | –
UFormer-B | 33.06/.967 | 30.90/.953 | 29.09/.886 | .0868 | .1474
HINet | 32.71/.959 | 30.32/.932 | 28.17/.849 | .0880 | .1740
MIMO-UNet+ | 32.45/.957 | 29.99/.930 | 27.63/.837 | – | –
DeblurGAN-v2 | 29.55/.934 | 26.61/.875 | 28.70/.866 | – | –
HI-Diff | 33.33/.964 | 31.46/.945 | 29.15/.890 | .0799 | .1470
DiffIR | 33.20/.963 | 31.55/.947 | – | .0787 | .1541
IR-SDE | 30.70/.901 | – | 24.21/.729 | – | –
"""


def parse(text: str) -> dict[str, list[float | None]]:
    table = {}
    for line in text.strip().splitlines():
        method, *cells = (cell.strip() for cell in line.split("|"))
        table[method] = [
            None if v == "–" else float(v) for cell in cells for v in (cell.split("/") if cell != "–" else ["–"])
        ]
    return table


@pytest.mark.parametrize(("name", "text"), [("mean", TABLE_3), ("gopro", GOPRO), ("hide", HIDE)])
def test_published_tables(name, text):
    table = parse(text)
    rows = {row.method: [getattr(row, c) for c in COLUMNS] for row in PUBLISHED[name][: len(table)]}
    assert rows == table


@pytest.mark.parametrize(("name", "column", "lpips"), [("gopro", 0, 0), ("hide", 1, None), ("realblur_j", 2, 1)])
def test_reference_points(name, column, lpips):
    points = {
        line.split("|")[0].strip(): [c.strip() for c in line.split("|")[1:]] for line in POINTS.strip().splitlines()
    }
    own_table = set(parse({"gopro": GOPRO, "hide": HIDE}.get(name, "")))
    expected = {}
    for method, cells in points.items():
        psnr, ssim = map(float, cells[column].split("/")) if cells[column] != "–" else (None, None)
        distance = float(cells[3 + lpips]) if lpips is not None and cells[3 + lpips] != "–" else None
        if method not in own_table and (psnr, distance) != (None, None):  # the set's own table comes before reprints
            expected[method] = (distance, psnr, ssim)
    rows = [row for row in PUBLISHED[name] if row.method not in own_table]
    assert {row.method: (row.lpips, row.psnr, row.ssim) for row in rows} == expected


def test_every_row_says_where_it_is_from_and_stands_once():
    for rows in PUBLISHED.values():
        assert len({row.method for row in rows}) == len(rows)
        assert all(len(row.source) > 5 for row in rows)
        assert all(
            0 <= (row.ssim or 0) <= 1 and 0 <= (row.lpips or 0) < 1 and 20 < (row.psnr or 30) < 40 for row in rows
        )

"""Scores that others published, as data with their source: to stand beside our own, never to be mixed with them.

All models were trained on GoPro. None of these numbers was measured here; how each was measured is only partly known.
KID is given times 1000, as DvSR's table says; the paper's own KID column is taken to be so too. Where DvSR's table has a
method, other values of it from reprints are left out.
"""

from typing import NamedTuple

COLUMNS = ("lpips", "niqe", "fid", "kid", "psnr", "ssim")  # in the order of the paper's Table 3

TABLE_3 = "Ren 2023, Table 3"
DVSR = "DvSR: Whang 2022, its tables of GoPro and HIDE"
HI_DIFF = "reprinted in HI-Diff (Chen 2023), Table 1"
OSDD = "LPIPS: OSDD's table of full-reference metrics"
DINAT = "reprinted in DeblurDiNAT's table"
DIFFIR = "DiffIR's (Xia 2023) table"
C2F = "IR-SDE, reprinted in C2F-DFT, Table 2"
NAFNET = "NAFNet's own page; needs its test-time local converter (33.08 dB without)"


class Published(NamedTuple):
    """A row of a published table; None where it gives no value."""

    method: str
    lpips: float | None
    niqe: float | None
    fid: float | None
    kid: float | None
    psnr: float | None
    ssim: float | None
    source: str


def _rows(source: str, *rows: tuple) -> tuple[Published, ...]:
    return tuple(Published(*row, source) for row in rows)


def _points(*rows: tuple) -> tuple[Published, ...]:
    """(method, psnr, ssim, lpips, source): reference points from reprints."""
    return tuple(
        Published(method, lpips, None, None, None, psnr, ssim, source) for method, psnr, ssim, lpips, source in rows
    )


# "mean": over GoPro, HIDE, RealBlur-J and REDS, each set with equal weight. Which part of REDS is not known to us
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "mean": _rows(
        TABLE_3,
        ("DeblurGAN-v2", 0.149, 3.42, 14.57, 5.28, 28.09, 0.871),
        ("MPRNet", 0.140, 3.70, 20.22, 8.49, 29.78, 0.897),
        ("UFormer", 0.133, 3.65, 18.99, 8.13, 30.06, 0.903),
        ("Restormer", 0.139, 3.69, 19.90, 8.36, 30.00, 0.895),
        ("Ren 2023, sample averaging", 0.124, 3.64, 14.36, 6.79, 29.98, 0.902),
        ("Ren 2023", 0.104, 2.94, 8.41, 2.39, 28.81, 0.881),
    ),
    "gopro": _rows(
        DVSR,
        ("sharp pictures", 0, 3.21, 0, 0, None, 1),
        ("HINet", 0.088, 4.01, 17.91, 8.15, 32.77, 0.960),
        ("MPRNet", 0.089, 4.09, 20.18, 9.10, 32.66, 0.959),
        ("MIMO-UNet+", 0.091, 4.03, 18.05, 8.17, 32.45, 0.957),
        ("DeblurGAN-v2", 0.117, 3.68, 13.40, 4.41, 29.08, 0.918),
        ("DvSR", 0.059, 3.39, 4.04, 0.98, 31.66, 0.948),
        ("DvSR, sample averaging", 0.078, 4.07, 17.46, 8.03, 33.23, 0.963),
    )
    + _points(
        ("NAFNet-64", 33.71, 0.967, 0.0781, f"{NAFNET}; {OSDD}"),
        ("Restormer", 32.92, 0.961, 0.0841, f"{HI_DIFF}; {OSDD}"),
        ("Stripformer", 33.08, 0.962, 0.0771, f"{HI_DIFF}; {OSDD}"),
        ("UFormer-B", 33.06, 0.967, 0.0868, f"{DINAT}, its SSIM probably computed otherwise; {OSDD}"),
        ("HI-Diff", 33.33, 0.964, 0.0799, f"{HI_DIFF}; {OSDD}"),
        ("DiffIR", 33.20, 0.963, 0.0787, f"{DIFFIR}; {OSDD}"),
        ("IR-SDE", 30.70, 0.901, None, C2F),
    ),
    "hide": _rows(
        DVSR,
        ("sharp pictures", 0, 2.72, 0, 0, None, 1),
        ("HINet", 0.120, 3.20, 15.17, 7.33, 30.33, 0.932),
        ("MPRNet", 0.114, 3.46, 16.58, 8.35, 30.96, 0.939),
        ("MIMO-UNet+", 0.124, 3.24, 16.01, 7.91, 29.99, 0.930),
        ("DeblurGAN-v2", 0.159, 2.96, 15.51, 6.97, 27.51, 0.885),
        ("DvSR", 0.089, 2.69, 5.43, 1.61, 29.77, 0.922),
        ("DvSR, sample averaging", 0.092, 2.93, 6.37, 2.40, 30.07, 0.928),
    )
    + _points(
        ("NAFNet-64", 31.32, 0.943, None, DINAT),
        ("Restormer", 31.22, 0.942, None, HI_DIFF),
        ("Stripformer", 31.03, 0.940, None, HI_DIFF),
        ("UFormer-B", 30.90, 0.953, None, f"{DINAT}, its SSIM probably computed otherwise"),
        ("HI-Diff", 31.46, 0.945, None, HI_DIFF),
        ("DiffIR", 31.55, 0.947, None, DIFFIR),
    ),
    "realblur_j": _points(
        ("NAFNet-64", 28.32, 0.857, 0.1688, f"{DINAT}; {OSDD}"),
        ("Restormer", 28.96, 0.879, 0.1561, f"{HI_DIFF}; {OSDD}"),
        ("MPRNet", 28.70, 0.873, 0.1587, f"{HI_DIFF}; {OSDD}"),
        ("Stripformer", 28.82, 0.876, None, HI_DIFF),
        ("UFormer-B", 29.09, 0.886, 0.1474, f"{DINAT}, its SSIM probably computed otherwise; {OSDD}"),
        ("HINet", 28.17, 0.849, 0.1740, f"{HI_DIFF}; {OSDD}"),
        ("MIMO-UNet+", 27.63, 0.837, None, HI_DIFF),
        ("DeblurGAN-v2", 28.70, 0.866, None, HI_DIFF),
        ("HI-Diff", 29.15, 0.890, 0.1470, f"{HI_DIFF}; {OSDD}"),
        ("DiffIR", None, None, 0.1541, OSDD),
        ("IR-SDE", 24.21, 0.729, None, C2F),
    ),
}

"""Scores that others published, with their source: to stand beside our own, never to be mixed with them.

All models were trained on GoPro; how each number was measured is only partly known. KID is given times 1000, as DvSR's
table says, and the paper's is taken to be. Where DvSR has a method, other values of it from reprints are left out.
"""

import csv
from collections import namedtuple
from pathlib import Path

COLUMNS = ("lpips", "niqe", "fid", "kid", "psnr", "ssim")  # in the order of the paper's Table 3
Published = namedtuple("Published", ("method", *COLUMNS, "source"))  # numbers; None where a table gives no value


def _read() -> dict[str, tuple[Published, ...]]:
    tables: dict[str, tuple[Published, ...]] = {}
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            scores = (float(row[metric]) if row[metric] else None for metric in COLUMNS)
            tables[row["set"]] = (*tables.get(row["set"], ()), Published(row["method"], *scores, row["source"]))
    return tables


# By set. "mean": over GoPro, HIDE, RealBlur-J and REDS, each with equal weight; which part of REDS is not known to us
PUBLISHED = _read()

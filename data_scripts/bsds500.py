"""BSDS500 (Arbelaez 2011): 500 natural photographs, for research and education. Run: python data_scripts/bsds500.py

Then: python -m tinymsg train --set content=data/BSDS500-master/BSDS500/data/images/train --out runs/photos-guided
"""

import sys
from pathlib import Path

from fetch import Archive, main

BSDS500 = Archive(
    name="BSDS500-master.zip",
    mirrors=("https://github.com/BIDS/BSDS500/archive/refs/heads/master.zip",),
    licence="non-commercial research and education",
    citation="Arbelaez, Maire, Fowlkes, Malik: Contour detection and hierarchical image segmentation, TPAMI 2011",
    md5="7bfe17302a219367694200a61ce8256c",
    size=80_000_000,
)
IMAGES = {"train": 200, "val": 100, "test": 200}


def missing(folder: Path) -> str | None:
    """None if every picture is there, else what is not."""
    for split, expected in IMAGES.items():
        found = len(list((folder / "BSDS500-master/BSDS500/data/images" / split).glob("*.jpg")))
        if found != expected:
            return f"{split} has {found} of {expected} pictures"
    return None


if __name__ == "__main__":
    sys.exit(main(BSDS500, missing, __doc__.splitlines()[0]))

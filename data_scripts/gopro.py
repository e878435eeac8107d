"""GoPro (Nah 2017): 2103 training and 1111 test pairs, 1280x720. Run: python data_scripts/gopro.py

Then: python -m tinymsg train --profile full --data data/GOPRO_Large/train --out runs/gopro-guided
"""

import sys
from pathlib import Path

from fetch import Archive, main

GOPRO = Archive(
    name="GOPRO_Large.zip",
    mirrors=("https://huggingface.co/datasets/snah/GOPRO_Large/resolve/main/GOPRO_Large.zip",),
    licence="CC BY 4.0",
    citation="Nah, Kim, Lee: Deep multi-scale convolutional neural network for dynamic scene deblurring, CVPR 2017",
    size=9_500_000_000,
)
PAIRS = {"train": 2103, "test": 1111}


def missing(folder: Path) -> str | None:
    """None if every pair is there, else what is not."""
    for split, expected in PAIRS.items():
        for kind in ("blur", "sharp"):
            found = len(list((folder / "GOPRO_Large" / split).glob(f"*/{kind}/*.png")))
            if found != expected:
                return f"GOPRO_Large/{split} has {found} of {expected} {kind} pictures"
    return None


if __name__ == "__main__":
    sys.exit(main(GOPRO, missing, __doc__.splitlines()[0]))

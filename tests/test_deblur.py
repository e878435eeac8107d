"""What deblur asks of a GPU, shown without one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tinymsg.cli import deblur
from tinymsg.data import ImageError


@pytest.mark.parametrize("kept, fits", [(0, False), (399, False), (400, True)])
def test_what_torch_keeps_of_earlier_pictures_counts_as_free(tiny_recipe, monkeypatch, kept, fits):
    """The second picture of a folder finds a card full of the first one's blocks, all of which it may have."""
    x = SimpleNamespace(shape=(1, 3, 10, 10), device=torch.device("cuda"))
    unit = 16 * 100  # bytes for each one that a pixel and channel take: 16 channels, 100 pixels
    monkeypatch.setattr(deblur, "_BYTES_PER_PIXEL_AND_CHANNEL", {True: 500, False: 1000})
    free = {"get_memory_info": (600 * unit, 10**9), "memory_reserved": (kept + 7) * unit, "memory_allocated": 7 * unit}
    for name, value in free.items():
        monkeypatch.setattr(torch.accelerator, name, lambda device, value=value: value)
    if fits:
        deblur.check_memory(Path("a.png"), x, tiny_recipe().network)
    else:
        with pytest.raises(ImageError, match="a.png: 10x10 pixels need about 0 GB of memory"):
            deblur.check_memory(Path("a.png"), x, tiny_recipe().network)

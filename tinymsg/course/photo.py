"""The learner's own photograph: dropped in once, small and in one file beside the lessons, used by all of them.

Without one, the lessons use a cat. Nothing leaves this machine, and git ignores the file.
"""

import os
import tempfile
from pathlib import Path

import ipywidgets
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageError, photo, read_image, to_model, write_image
from .display import Panel

FILE = "my_photo.png"  # in the folder that a lesson runs in: notebooks/
LONGEST = 512  # pixels: no lesson shows more, and the file stays small
# Set to anything: one's own photograph is left alone. For what is committed, and for tests
ONLY_DEFAULT = "TINYMSG_DEFAULT_PHOTO"


def _resized(display: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(display[None], size=(h, w), mode="bilinear", antialias=True)[0]


def keep_photo(source: str | Path) -> None:
    """Make a picture file the photograph of all lessons: upright, shrunk, saved as PNG without EXIF data (place, time).

    Raises: ImageError, with one sentence, if it cannot be read or kept; what was kept before then stays.
    """
    display = read_image(source)
    h, w = display.shape[-2:]
    if (longest := max(h, w)) > LONGEST:
        display = _resized(display, *(max(round(side * LONGEST / longest), 1) for side in (h, w)))
    write_image(FILE, display)


def my_photo(size: int) -> tuple[Tensor, str]:
    """The middle of the learner's photograph, or of the cat where none was dropped in.

    Returns: ((3, size, size) display values in [0, 1], a caption that says which photograph it is).
    Raises: ImageError if the file is there but damaged.
    """
    display, caption = photo("chelsea").float() / 255, "the cat Chelsea"
    if ONLY_DEFAULT not in os.environ and Path(FILE).is_file():
        try:
            display, caption = read_image(FILE), "your photograph"
        except ImageError as error:
            raise ImageError(f"{error}; delete the file, or drop a photograph in again") from None
    h, w = display.shape[-2:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return _resized(display[:, top : top + side, left : left + side], size, size), caption


class PhotoUpload(Panel):
    """A button that takes a photograph, one that forgets it, and a look at what the lessons use now."""

    def __init__(self):
        self.upload = ipywidgets.FileUpload(accept="image/*", description="Choose a photograph")
        self.forget = ipywidgets.Button(description="Back to the cat")
        self.upload.layout.width = self.forget.layout.width = "auto"
        self.upload.observe(self._on_upload, names="value")
        self.forget.on_click(self._on_forget)
        super().__init__([self.upload, self.forget])
        self.refresh()

    def refresh(self, message: str = "") -> None:
        """Show what the lessons use now, after a message."""
        try:
            display, caption = my_photo(128)
        except ImageError as error:
            display, caption, message = torch.ones(3, 128, 128), "no photograph", f"{error}."
        self.draw(to_model(display), f"In use: {caption}.", scale=1)
        self.say(f"{message} In use: {caption}.".strip())
        self.forget.disabled = not Path(FILE).is_file()

    def _on_upload(self, change: dict) -> None:
        if not change["new"]:
            return  # emptied below, so that the same file can be chosen twice
        (chosen,) = change["new"]
        name = Path(chosen["name"]).name
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "photograph"  # not the sender's name: it might not be one that this system can hold
            source.write_bytes(chosen["content"])
            try:
                keep_photo(source)
                message = f"{name} is kept. Run the cells below again."
            except ImageError as error:
                message = str(error).replace(str(source), name) + "."
        self.upload.value = ()
        self.refresh(message)

    def _on_forget(self, _) -> None:
        Path(FILE).unlink(missing_ok=True)
        self.refresh("Your photograph is deleted. Run the cells below again.")


def my_photo_upload() -> PhotoUpload:
    """Display buttons to drop in a photograph, or to go back to the cat; returns the `PhotoUpload`."""
    upload = PhotoUpload()
    upload.show()
    return upload

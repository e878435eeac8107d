"""The learner's own photograph: dropped in once, small and in one file beside the lessons, used by all of them.

Without one, the lessons use a cat. Nothing leaves this machine, and git ignores the file.
"""

import base64
import html
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageError, photo, read_image, to_model, write_image
from .figures import display_view, frame_bytes

FILE = "my_photo.png"  # in the folder that a lesson runs in: notebooks/
LONGEST = 512  # pixels: no lesson shows more, and the file stays small
DEFAULT, DEFAULT_CAPTION = "chelsea", "the cat Chelsea"
# Set to anything: one's own photograph is left alone. For what is committed, and for tests
ONLY_DEFAULT = "TINYMSG_DEFAULT_PHOTO"


def keep_photo(source: str | Path, path: str | Path = FILE) -> Path:
    """Make a picture file the photograph of all lessons: turned upright, shrunk, and saved as PNG.

    Args:
        source: any file that `data.read_image` reads. Its EXIF data (place, time, camera) is not carried over.
        path: where it is kept.
    Returns: path.
    Raises: ImageError, with one sentence, if it cannot be read or kept; what was kept before then stays.
    """
    display = read_image(source)
    h, w = display.shape[-2:]
    if max(h, w) > LONGEST:
        size = [max(round(side * LONGEST / max(h, w)), 1) for side in (h, w)]
        display = F.interpolate(display[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    write_image(path, display)
    return Path(path)


def forget_photo(path: str | Path = FILE) -> None:
    """Delete the learner's photograph: the lessons use the cat again."""
    Path(path).unlink(missing_ok=True)


def my_photo(size: int, path: str | Path = FILE) -> tuple[Tensor, str]:
    """The middle of the learner's photograph, or of the cat where none was dropped in.

    Args:
        size: pixels. The largest centred square is shrunk or enlarged to size x size.
        path: where `keep_photo` kept it.
    Returns: ((3, size, size) display values in [0, 1], a caption that says which photograph it is).
    Raises: ImageError if the file is there but damaged.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if ONLY_DEFAULT not in os.environ and Path(path).is_file():
        try:
            display, caption = read_image(path), "your photograph"
        except ImageError as error:
            raise ImageError(f"{error}; delete the file, or drop a photograph in again") from None
    else:
        display, caption = photo(DEFAULT).float() / 255, DEFAULT_CAPTION
    h, w = display.shape[-2:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    square = display[None, :, top : top + side, left : left + side]
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0], caption


class PhotoUpload:
    """A button that takes a photograph, one that forgets it, and a look at what the lessons use now.

    Args:
        path: where the photograph is kept.
        size: pixels of the look.
    """

    def __init__(self, path: str | Path = FILE, size: int = 128):
        import ipywidgets

        self.path, self.size = Path(path), size
        self.upload = ipywidgets.FileUpload(
            accept="image/*", multiple=False, description="Choose a photograph", layout={"width": "auto"}
        )
        self.forget = ipywidgets.Button(description="Back to the cat", layout={"width": "auto"})
        self.status, self.picture = ipywidgets.HTML(), ipywidgets.HTML()
        self.upload.observe(self._on_upload, names="value")
        self.forget.on_click(lambda _: self._on_forget())
        self.view = ipywidgets.VBox([ipywidgets.HBox([self.upload, self.forget]), self.status, self.picture])
        self.refresh()

    def refresh(self, message: str = "") -> str:
        """Show what the lessons use now; returns it in words."""
        try:
            display, caption = my_photo(self.size, self.path)
        except ImageError as error:
            display, caption, message = torch.ones(3, self.size, self.size), "no photograph", f"{error}."
        text = f"In use: {caption}."
        self._look = frame_bytes(to_model(display), scale=1)
        source = base64.b64encode(self._look).decode()
        self.picture.value = f'<img alt="{html.escape(text, quote=True)}" src="data:image/png;base64,{source}">'
        self.status.value = html.escape(f"{message} {text}".strip())
        self.forget.disabled = not self.path.is_file()
        return text

    def show(self) -> None:
        """Display it. Where widgets cannot run, the picture and the words are left."""
        text = self.refresh()
        display_view(self.view, self._look, text)

    def _on_upload(self, change: dict) -> None:
        if not change["new"]:
            return  # emptied below, so that the same file can be chosen twice
        (chosen,) = change["new"]
        name = Path(chosen["name"]).name
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "photograph"  # not the sender's name: it might not be one that this system can hold
            source.write_bytes(chosen["content"])
            try:
                keep_photo(source, self.path)
                message = f"{name} is kept. Run the cells below again."
            except ImageError as error:
                message = str(error).replace(str(source), name) + "."
        self.upload.value = ()
        self.refresh(message)

    def _on_forget(self) -> None:
        forget_photo(self.path)
        self.refresh("Your photograph is deleted. Run the cells below again.")


def my_photo_upload() -> PhotoUpload:
    """Display buttons to drop in a photograph, or to go back to the cat; returns the `PhotoUpload`."""
    upload = PhotoUpload()
    upload.show()
    return upload

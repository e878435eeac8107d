"""The learner's own photograph: dropped in by hand or by code, whatever it is, and forgotten again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tinymsg.course.photo import FILE, LONGEST, ONLY_DEFAULT, PhotoUpload, keep_photo, my_photo, my_photo_upload
from tinymsg.data import ImageError, photo, read_image

ORIENTATION = 0x0112  # EXIF


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of its own, as notebooks/ is for the lessons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ONLY_DEFAULT, raising=False)
    return tmp_path


def two_halves(w: int, h: int) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[:, : w // 2, 0] = pixels[:, w // 2 :, 2] = 255
    return Image.fromarray(pixels)


def drop_in(upload: PhotoUpload, path: Path) -> str:
    """What the browser sends when a file is chosen; returns what is shown."""
    chosen = {
        "name": path.name,
        "type": "",
        "size": path.stat().st_size,
        "content": memoryview(path.read_bytes()),
        "last_modified": 0,
    }
    upload.upload.set_state({"value": [chosen]})
    return upload.status.value


def is_the_cat(size: int = 20) -> bool:
    mine, caption = my_photo(size)
    middle = photo("chelsea")[:, :, 75:375].float()[None] / 255
    expected = torch.nn.functional.interpolate(middle, size=size, mode="bilinear", antialias=True)[0]
    return caption == "the cat Chelsea" and torch.equal(mine, expected)


def test_without_a_photograph_it_is_the_cat(folder):
    assert is_the_cat()
    assert list(folder.iterdir()) == []


def test_a_png_is_kept_and_used(folder):
    two_halves(300, 200).save(folder / "holiday.png")
    upload = PhotoUpload()
    assert upload.forget.disabled
    said = drop_in(upload, folder / "holiday.png")
    assert "holiday.png is kept" in said and "your photograph" in said
    assert upload.upload.value == () and not upload.forget.disabled  # the same file can be chosen again
    mine, caption = my_photo(100)
    assert caption == "your photograph" and mine.shape == (3, 100, 100)
    assert torch.equal(mine[:, 0, 0], torch.tensor([1.0, 0, 0])) and torch.equal(
        mine[:, -1, -1], torch.tensor([0, 0, 1.0])
    )
    assert "your photograph" in upload.picture.value
    assert drop_in(upload, folder / "holiday.png").startswith("holiday.png is kept")


def test_a_jpeg_is_turned_upright_and_loses_its_exif_data(folder):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was held on its side: to be turned by 90 degrees clockwise
    exif[0x010E] = "where I live"
    two_halves(64, 32).save(folder / "phone.jpg", exif=exif, quality=95)
    drop_in(PhotoUpload(), folder / "phone.jpg")
    assert read_image(FILE).shape == (3, 64, 32)
    mine, _ = my_photo(16)
    assert mine[0, 0].min() > 0.9 and mine[2, -1].min() > 0.9  # red is above now
    with Image.open(FILE) as kept:
        assert dict(kept.getexif()) == {} and "where" not in str(kept.info)


@pytest.mark.parametrize(
    ("size", "kept"), [((2000, 1000), (LONGEST, 256)), ((1000, 3), (LONGEST, 2)), ((512, 90), (512, 90))]
)
def test_what_is_large_is_shrunk(folder, size, kept):
    two_halves(*size).save(folder / "large.png")
    keep_photo("large.png")
    with Image.open(FILE) as image:
        assert image.size == kept
    assert my_photo(8)[0].shape == (3, 8, 8)


def test_a_single_pixel_is_a_photograph_too(folder):
    Image.new("RGB", (1, 1), (0, 255, 0)).save(folder / "dot.png")
    drop_in(PhotoUpload(), folder / "dot.png")
    mine, caption = my_photo(32)
    assert caption == "your photograph"
    assert torch.equal(mine, torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 32, 32))


def test_what_cannot_be_read_is_said_in_a_sentence_and_changes_nothing(folder):
    two_halves(30, 30).save(folder / "good.png")
    upload = PhotoUpload()
    drop_in(upload, folder / "good.png")
    (folder / "letter.txt").write_text("<b>Dear all</b>")
    said = drop_in(upload, folder / "letter.txt")
    assert said.startswith("letter.txt: ") and said.endswith("In use: your photograph.")
    Image.new("1", (8200, 8000)).save(folder / "huge.png")
    assert drop_in(upload, folder / "huge.png").startswith(
        "huge.png: 8200x8000 pixels; the limit is 64 million. In use"
    )
    assert my_photo(8)[1] == "your photograph"
    assert sorted(path.name for path in folder.iterdir()) == ["good.png", "huge.png", "letter.txt", FILE]


def test_names_are_shown_as_text_not_run(folder):
    (folder / "a<img src=x>.png").write_text("no picture")
    assert "<img" not in drop_in(PhotoUpload(), folder / "a<img src=x>.png")


def test_going_back_to_the_cat(folder):
    two_halves(30, 30).save(folder / "good.png")
    upload = PhotoUpload()
    drop_in(upload, folder / "good.png")
    assert not is_the_cat()
    upload.forget.click()
    assert is_the_cat() and not (folder / FILE).exists()
    assert "the cat Chelsea" in upload.status.value and upload.forget.disabled
    upload.forget.click()  # twice is no mistake


def test_a_damaged_file_says_what_to_do(folder):
    Path(FILE).write_bytes(b"half a picture")
    with pytest.raises(ImageError, match="delete the file"):
        my_photo(8)
    upload = PhotoUpload()
    assert "no photograph" in upload.status.value and not upload.forget.disabled
    upload.forget.click()
    assert is_the_cat()


def test_what_is_committed_never_holds_a_private_photograph(folder, monkeypatch):
    two_halves(30, 30).save(folder / "good.png")
    keep_photo("good.png")
    monkeypatch.setenv(ONLY_DEFAULT, "1")
    assert is_the_cat()
    ignored = (Path(__file__).parents[1] / ".gitignore").read_text().split()
    assert f"notebooks/{FILE}" in ignored


def test_a_lesson_shows_picture_and_words_where_widgets_cannot_run(folder, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, **options: shown.append((bundle, options)))
    my_photo_upload()
    ((bundle, options),) = shown
    assert bundle["text/plain"] == options["metadata"]["image/jpeg"]["alt"] and "the cat" in bundle["text/plain"]
    assert bundle["image/jpeg"].startswith("/9j/")

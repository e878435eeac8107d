"""Writes results/overview.png, the README's picture: blurry, restored, sharp; a short motion, a longer shake."""

from pathlib import Path

import torch

from tinymsg.blur import photograph
from tinymsg.course.figures import frame_bytes, image_grid, score_text, use_style
from tinymsg.data import DOMAINS, photo, to_model
from tinymsg.model import model_card, pretrained
from tinymsg.rng import Draws
from tinymsg.sample import Setting, restore

CROPS = {"astronaut": (40, 130), "chelsea": (60, 160)}  # top, left of a 192-pixel square

use_style()
model = pretrained("everyday-plain")
setting = Setting(**model_card("everyday-plain")["setting"])
rows, notes = {}, []
for label, domain in (("short motion", "gopro_like"), ("camera shake", "camera_shake")):
    row, scores = [], []
    for name, (top, left) in CROPS.items():
        sharp = photo(name)[None, :, top : top + 192, left : left + 192].float() / 255
        y0, x = photograph(sharp, DOMAINS[domain].motion, DOMAINS[domain].camera, Draws(3, torch.tensor([5])))
        y0, x = to_model(y0), to_model(x)
        y0_hat = restore(model, x, setting, torch.Generator().manual_seed(0))
        row += [x, y0_hat, y0]
        scores += [score_text(x, y0), score_text(y0_hat, y0), ""]
    rows[label] = row
    notes.append(scores)
figure = image_grid(rows, titles=["blurry", "restored", "sharp"] * len(CROPS), notes=notes, size=2.0)
Path(__file__).with_name("results").joinpath("overview.png").write_bytes(frame_bytes(figure))

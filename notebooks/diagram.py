"""Writes results/guidance.png, the drawing in lesson 03: the guided icDPM, after Figs. 2 and 3 of Ren 2023."""

from pathlib import Path

import matplotlib.pyplot as plt

from tinymsg.course.figures import COLORS, frame_bytes, use_style

GUIDED, PLAIN, SHARP, BLURRY = (COLORS[name] for name in ("guided", "plain", "structure", "blurry"))
TEXT = {"va": "center", "fontsize": 9.5}
LINES = {0: 7.4, 1: 5.6, 2: 3.8, 3: 2.0}  # scale: height

use_style()
figure, axis = plt.subplots(figsize=(10.5, 4.6))
axis.set(xlim=(0, 21), ylim=(0.1, 8.6))
axis.axis("off")


def box(x: float, y: float, width: float, text: str, color: str, height: float = 0.9) -> None:
    corner = x, y - height / 2
    axis.add_patch(plt.Rectangle(corner, width, height, facecolor=color, alpha=0.18, edgecolor="none"))
    axis.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.6))
    axis.text(x + width / 2, y, text, ha="center", **TEXT)


def arrow(*points: tuple[float, float], color: str = "0.35", style: str = "-") -> None:
    xs, ys = zip(*points, strict=True)
    look = {"color": color, "linestyle": style, "linewidth": 1.4}
    axis.plot(xs[:-1], ys[:-1], **look)
    axis.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "->"} | look)


# The guidance
box(0.1, LINES[0], 1.7, "blurry $x$", BLURRY)
arrow((0.95, 6.9), (0.95, LINES[3]), (2.0, LINES[3]))
axis.text(0.62, 4.6, "gray", rotation=90, ha="center", **TEXT)
for k in (1, 2, 3):
    y, size = LINES[k], f"1/{2**k}"
    arrow((0.95, y), (2.0, y))
    box(2.0, y, 1.6, rf"$\varphi_{k}$: {size}", GUIDED)
    arrow((3.6, y), (4.2, y))
    box(4.2, y, 2.5, rf"$H_{k}$: res. blocks", GUIDED)
    arrow((5.45, y - 0.45), (5.45, y - 0.95), (6.7, y - 0.95), color=SHARP, style=":")
    axis.text(6.8, y - 0.95, rf"$\hat s_{k}$  vs.  $s_{k}$ (sharp, gray, {size})", color=SHARP, **TEXT)
    arrow((6.7, y), (8.4, y), color=GUIDED)
    box(8.4, y, 1.5, rf"$W_{k}$: 1×1", GUIDED)
    arrow((9.9, y), (12.55, y), color=GUIDED)
    circle = {"boxstyle": "circle,pad=0.1", "edgecolor": GUIDED, "facecolor": "white"}
    axis.text(12.85, y, "+", ha="center", va="center", fontsize=13, color=GUIDED, bbox=circle)
axis.text(7.55, LINES[1] + 0.25, "features $h_1$", color=GUIDED, ha="center", fontsize=9.5)

# The UNet
box(8.4, LINES[0], 1.5, "$y_t$, $x$", BLURRY)
arrow((9.9, LINES[0]), (11.9, LINES[0]), color=PLAIN)
box(11.9, LINES[0], 1.9, "encoder 1/1", PLAIN, height=0.62)
arrow((13.8, LINES[0]), (16.1, LINES[0]), color=PLAIN)
box(16.1, LINES[0], 1.9, "decoder 1/1", PLAIN, height=0.62)
arrow((18.0, LINES[0]), (18.8, LINES[0]), color=PLAIN)
axis.text(18.9, LINES[0], r"$\hat\epsilon$  vs.  $\epsilon$", color=PLAIN, va="center", fontsize=11)
for k in (1, 2, 3):
    y, above = LINES[k], LINES[k - 1]
    box(11.9, y + 0.93, 1.9, f"encoder 1/{2**k}", PLAIN, height=0.62)
    arrow((12.85, above - (0.31 if k == 1 else 0.3)), (12.85, y + 1.24), color=PLAIN)
    arrow((12.85, y + 0.62), (12.85, y + 0.32), color=PLAIN)
    arrow((13.2, y), (16.1, y), color=PLAIN)
    box(16.1, y, 1.9, f"decoder 1/{2**k}", PLAIN, height=0.62)
    arrow((17.05, y + 0.31), (17.05, above - 0.31), color=PLAIN)
arrow((12.85, LINES[3] - 0.3), (12.85, 0.75), (14.0, 0.75), color=PLAIN)
box(14.0, 0.75, 1.7, "middle", PLAIN, height=0.62)
arrow((15.7, 0.75), (17.05, 0.75), (17.05, LINES[3] - 0.31), color=PLAIN)

Path(__file__).with_name("results").joinpath("guidance.png").write_bytes(frame_bytes(figure))

"""How a blurry photograph comes about: the camera moves while the shutter is open, the sensor adds up light.

    path (camera poses)  ->  mean of the moved images in *linear* light  ->  clipping  ->  sensor noise
                         ->  camera response (display values)            ->  8 bits or JPEG

Images are float (n, c, h, w). Linear light and display values both live in [0, 1] (linear light may exceed 1
before the sensor clips it). Everything runs on the device of its input; who moves how is decided on the CPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .machine import upload
from .rng import Draws

# --- what is drawn anew for each picture --------------------------------------------------------------------


class Range(NamedTuple):
    """A value drawn anew for each picture; a plain (low, high) is one that is uniform and for all pictures."""

    low: float
    high: float
    log: bool = False  # uniform in its logarithm: as many small values as large ones
    share: float = 1.0  # of the pictures that get such a value
    otherwise: float = 0.0  # what the others get


Amount = float | tuple[float, float] | Range  # a constant, which draws no random number, or a range


def draw_range(bounds: tuple[float, float] | Range, draws: Draws) -> Tensor:
    """(n,) values."""
    low, high, log, share, otherwise = bounds if isinstance(bounds, Range) else Range(*bounds)
    if log:
        value = torch.exp(draws.uniform(low=math.log(low), high=math.log(high)))
    else:
        value = draws.uniform(low=low, high=high)
    return value if share == 1 else torch.where(draws.uniform() < share, value, otherwise)


def draw_amount(amount: Amount, draws: Draws) -> float | Tensor:
    """A constant as it is, (n,) values of a range."""
    return draw_range(amount, draws) if isinstance(amount, tuple) else amount


def _check_amount(name: str, amount: Amount, least: float = 0) -> None:
    low, high = amount[:2] if isinstance(amount, tuple) else (amount, amount)
    if not least <= low <= high or isinstance(amount, Range) and amount.log and low == 0:
        least_text = f"low >= {least:g} (> 0 for the logarithm)"
        raise ValueError(f"{name} must be a number or a range (low, high), {least_text}, got {amount}")


def _names(given: str | tuple[str, ...], kind: str, known: dict[str, Any]) -> tuple[str, ...]:
    """One name or several, as a tuple. Raises: ValueError for one that is not known."""
    names = (given,) if isinstance(given, str) else given
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    return names


# --- camera response: scene light <-> the numbers in the file -----------------------------------------------


def gamma_encode(linear: Tensor) -> Tensor:
    """Display values of linear light, exponent 1/2.2: the response GoPro's authors assume (Nah 2017)."""
    return linear.clamp(0, 1) ** (1 / 2.2)


def gamma_decode(display: Tensor) -> Tensor:
    """Linear light of display values in [0, 1], exponent 2.2."""
    return display.clamp(0, 1) ** 2.2


# Eilertsen et al. 2017 (HDR-CNN, eq. 3): an S-shaped curve fitted to the 201 measured camera responses of
# Grossberg & Nayar's database; these two constants are the mean camera.
_SIGMOID_N, _SIGMOID_SIGMA = 0.9, 0.6


def measured_encode(linear: Tensor) -> Tensor:
    """Display values of linear light through the mean of measured camera responses."""
    power = linear.clamp(0, 1) ** _SIGMOID_N
    return (1 + _SIGMOID_SIGMA) * power / (power + _SIGMOID_SIGMA)


def measured_decode(display: Tensor) -> Tensor:
    """Linear light of display values: the exact inverse of `measured_encode`."""
    display = display.clamp(0, 1)
    return (_SIGMOID_SIGMA * display / (1 + _SIGMOID_SIGMA - display)) ** (1 / _SIGMOID_N)


RESPONSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gamma": (gamma_encode, gamma_decode),
    "measured": (measured_encode, measured_decode),
    "none": (lambda linear: linear.clamp(0, 1), lambda display: display.clamp(0, 1)),  # the naive blur of many toys
}


# --- motion: camera paths -----------------------------------------------------------------------------------


def linear_path(draws: Draws, length: Tensor, steps: int, angle: float | None = None) -> Tensor:
    """Straight uniform motion.

    Args:
        length: (n,) pixels from end to end.
        steps: camera poses on the path, at least 2.
        angle: degrees from the x axis, counter-clockwise on screen; None draws one per image.
    Returns: (n, steps, 2) shifts (dx, dy) in pixels, mean zero.
    """
    theta = draws.uniform(high=math.pi) if angle is None else torch.full_like(length, math.radians(angle))
    time = torch.linspace(-0.5, 0.5, steps, device=length.device)
    direction = torch.stack([torch.cos(theta), -torch.sin(theta)], dim=-1)
    return length[:, None, None] * time[None, :, None] * direction[:, None, :]


def smooth_path(draws: Draws, length: Tensor, steps: int) -> Tensor:
    """A short smooth curve, as of a hand-held video at 240 frames/s: a quadratic with a random bend.

    Arguments and result as for `linear_path`; `length` is the end-to-end distance of the unbent path.
    """
    straight = linear_path(draws, length, steps)
    time = torch.linspace(-0.5, 0.5, steps, device=length.device)
    bend = draws.uniform(low=-0.6, high=0.6) * length
    direction = F.normalize(straight[:, -1] - straight[:, 0], dim=-1)
    normal = torch.stack([-direction[:, 1], direction[:, 0]], dim=-1)
    curve = (4 * time**2 - 1 / 3)[None, :, None] * (bend[:, None] * normal)[:, None, :] / 2
    path = straight + curve
    return path - path.mean(dim=1, keepdim=True)


def walk_path(draws: Draws, length: Tensor, steps: int) -> Tensor:
    """Camera shake: a random walk with inertia and rare jolts, scaled so that its larger extent is `length`.

    After Boracchi & Foi 2012 ("Modeling the performance of image restoration from motion blur", Sec. II):
    velocity keeps most of itself, receives Gaussian kicks, and sometimes reverses.
    Arguments and result as for `linear_path`.
    """
    kicks = draws.normal(steps, 2)
    jolt = draws.uniform(steps) < 0.06
    velocity = draws.normal(2)
    positions = [torch.zeros_like(velocity)]
    for step in range(1, steps):
        velocity = torch.where(jolt[:, step, None], -velocity + kicks[:, step], 0.9 * velocity + 0.35 * kicks[:, step])
        positions.append(positions[-1] + velocity)
    path = torch.stack(positions, dim=1)
    extent = (path.amax(dim=1) - path.amin(dim=1)).amax(dim=-1)
    path = path * (length / extent.clamp_min(1e-6))[:, None, None]
    return path - path.mean(dim=1, keepdim=True)


PATHS: dict[str, Callable[[Draws, Tensor, int], Tensor]] = {
    "linear": linear_path,
    "smooth": smooth_path,
    "walk": walk_path,
}


@dataclass(frozen=True)
class Motion:
    """A family of camera motions. Lengths in pixels, angles in degrees."""

    path: str | tuple[str, ...] = "smooth"  # a name in PATHS, or several to draw from
    length: tuple[float, float] | Range = (3.0, 11.0)
    angle: float | None = None  # fixed direction, linear paths only; None: any
    roll: tuple[float, float] | Range = (0.0, 0.0)  # rotation about the image centre over the exposure, degrees
    still: float = 0.0  # share of exposures in which the camera does not move
    steps: int = 33  # camera poses per exposure
    kernels: int | None = None  # draw from this many fixed paths only; None: endless

    def __post_init__(self):
        _names(self.path, "path", PATHS)
        _check_amount("length", self.length)
        _check_amount("roll", self.roll)
        if self.angle is not None and self.path != "linear":
            raise ValueError("angle fixes the direction of linear paths only; leave it None for others")
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2 camera poses, got {self.steps}")
        if self.kernels is not None and self.kernels < 1:
            raise ValueError(f"kernels must be at least 1 or None, got {self.kernels}")

    @property
    def reach(self) -> float:
        """Pixels along either axis that no path leaves its mean by more than: half the longest, one for its bend."""
        return self.length[1] / 2 + 1

    def draw(self, draws: Draws) -> Tensor:
        """Camera poses (n, steps, 3): dx and dy in pixels, roll in degrees; the mean pose is zero."""
        if self.kernels is not None:  # the path then depends on which of the fixed ones it is, not on the image
            draws = Draws(0x6B65726E, draws.integers(self.kernels))
        length = draw_range(self.length, draws)
        names = _names(self.path, "path", PATHS)
        paths = PATHS | {"linear": partial(linear_path, angle=self.angle)}
        drawn = torch.stack([paths[name](draws, length, self.steps) for name in names])
        which = draws.integers(len(names)) if len(names) > 1 else 0
        shifts = drawn[which, torch.arange(len(length), device=length.device)]
        # A walk may wander to one side: it is made smaller, so that no light is asked for from beyond the margin
        shifts = shifts * (self.reach / shifts.abs().amax(dim=(1, 2))).clamp(max=1)[:, None, None]
        roll = draw_range(self.roll, draws) * torch.sign(draws.uniform() - 0.5)
        time = torch.linspace(-0.5, 0.5, self.steps, device=shifts.device)
        path = torch.cat([shifts, (roll[:, None] * time)[:, :, None]], dim=-1)
        return path * (draws.uniform() >= self.still)[:, None, None] if self.still else path


def path_to_kernel(path: Tensor, size: int) -> Tensor:
    """Blur kernel of a camera path: each pose leaves equal light, split among its four nearest pixels.

    Args:
        path: (n, steps, >=2) shifts in pixels; further columns are ignored.
        size: odd side of the kernel; the path must lie within (size - 1) / 2 pixels of the centre.
    Returns: (n, size, size), non-negative, each summing to 1.

    >>> path_to_kernel(torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), size=3)[0, 1]
    tensor([0.0000, 0.5000, 0.5000])
    """
    if size % 2 == 0 or size < 1:
        raise ValueError(f"kernel size must be odd and positive, got {size}")
    n, steps = path.shape[:2]
    half = (size - 1) // 2
    # A small tolerance: a path that ends exactly on the border loses nothing but rounding
    if path[..., :2].abs().amax() > half + 1e-3:
        raise ValueError(f"the path reaches {path[..., :2].abs().amax():.1f} px, a kernel of {size} holds {half}")
    # Correlation reads x(p - shift): the scene moved by +shift lands at +shift
    position = (path[..., :2] + half).clamp(0, size - 1)
    corner = position.floor().clamp(max=max(size - 2, 0))
    fraction = position - corner
    kernel = torch.zeros(n, size * size, device=path.device, dtype=path.dtype)
    for x_offset in (0, 1):
        for y_offset in (0, 1):
            weight_x = fraction[..., 0] if x_offset else 1 - fraction[..., 0]
            weight_y = fraction[..., 1] if y_offset else 1 - fraction[..., 1]
            column = (corner[..., 0] + x_offset).clamp(max=size - 1)
            row = (corner[..., 1] + y_offset).clamp(max=size - 1)
            kernel.scatter_add_(1, (row * size + column).long(), weight_x * weight_y / steps)
    return kernel.reshape(n, size, size)


# --- light: adding up moved images --------------------------------------------------------------------------


def convolve(linear: Tensor, kernel: Tensor, padding: str = "reflect") -> Tensor:
    """Convolve each image with its kernel, by FFT (cost independent of the kernel's size).

    Args:
        linear: (n, c, h, w) linear light; signals are images of height 1.
        kernel: (n, kh, kw) or (1, kh, kw), both odd.
        padding: "reflect" keeps (h, w); "valid" returns (h-kh+1, w-kw+1) without invented borders.
    """
    kh, kw = kernel.shape[-2:]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"kernel sides must be odd, got {kh}x{kw}")
    if padding not in ("reflect", "valid"):
        raise ValueError(f"unknown padding {padding!r}; known: reflect, valid")
    if padding == "reflect":  # which needs more pixels than it adds; tiny images repeat their border instead
        fits = linear.shape[-2] > kh // 2 and linear.shape[-1] > kw // 2
        linear = F.pad(linear, (kw // 2, kw // 2, kh // 2, kh // 2), mode="reflect" if fits else "replicate")
    h, w = linear.shape[-2:]
    if h < kh or w < kw:
        raise ValueError(f"the image ({h}x{w}) is smaller than the kernel ({kh}x{kw})")
    spectrum = torch.fft.rfft2(linear.float()) * torch.fft.rfft2(kernel.float(), s=(h, w))[:, None]
    full = torch.fft.irfft2(spectrum, s=(h, w))
    return full[..., kh - 1 :, kw - 1 :].clamp_min(0).to(linear.dtype)


def average_frames(linear: Tensor, path: Tensor) -> Tensor:
    """Mean of the images that a moving, rolling camera sees: blur that varies over the picture.

    Args:
        linear: (n, c, h, w) linear light.
        path: (n, steps, 3), dx and dy in pixels, roll in degrees about the image centre.
    Returns: (n, c, h, w); light from outside the picture is its border repeated.
    """
    n, _, h, w = linear.shape
    axis_x = torch.arange(w, device=linear.device, dtype=torch.float32) - (w - 1) / 2
    axis_y = torch.arange(h, device=linear.device, dtype=torch.float32) - (h - 1) / 2
    grid_y, grid_x = torch.meshgrid(axis_y, axis_x, indexing="ij")
    total = torch.zeros_like(linear)
    for pose in path.unbind(dim=1):
        angle = torch.deg2rad(pose[:, 2])[:, None, None]
        shifted_x, shifted_y = grid_x - pose[:, 0, None, None], grid_y - pose[:, 1, None, None]
        source_x = torch.cos(angle) * shifted_x - torch.sin(angle) * shifted_y
        source_y = torch.sin(angle) * shifted_x + torch.cos(angle) * shifted_y
        grid = torch.stack([source_x * 2 / max(w - 1, 1), source_y * 2 / max(h - 1, 1)], dim=-1)
        # The clamp repeats the border: MPS has no padding_mode="border" in older versions of torch
        padding = "zeros" if linear.device.type == "mps" else "border"
        total += F.grid_sample(linear, grid.clamp(-1, 1), "bilinear", padding, align_corners=True)
    return total / path.shape[1]


# --- sensor and file ----------------------------------------------------------------------------------------


def sensor_noise(
    linear: Tensor, shot: float | Tensor, read: float | Tensor, draws: Draws, gains: float | Tensor = 1.0
) -> Tensor:
    """Poisson-Gaussian noise in its Gaussian form: variance shot * light + read^2 (Foi et al. 2008, eq. 3).

    Args:
        linear: (n, c, h, w) linear light in [0, 1].
        shot: variance per unit of light, >= 0 (1e-5 bright day, 0.01 dusk); a number or (n, 1, 1, 1).
        read: standard deviation of the electronics, >= 0, in units of full scale; as `shot`.
        gains: (n, c, 1, 1) of the white balance: the sensor saw light / gains, and its noise is multiplied with it.
    """
    if any(not isinstance(value, Tensor) and value < 0 for value in (shot, read)):  # a device is not asked
        raise ValueError(f"shot and read must be >= 0, got {shot} and {read}")
    deviation = torch.sqrt(gains * (shot * linear.clamp_min(0)) + (gains * read) ** 2)
    return linear + deviation * draws.on(linear.device).normal(*linear.shape[1:])


def expand_highlights(linear: Tensor, gain: float | Tensor, threshold: float = 0.6) -> Tensor:
    """Give clipped highlights their light back: values above `threshold` grow up to `gain` (>= 1) times.

    A file stores a street lamp as 1.0; its light was many times that, which is why blurred lamps
    draw bright streaks. Smooth in the light, so that no edges are invented.
    """
    if not isinstance(gain, Tensor) and gain < 1:
        raise ValueError(f"gain must be at least 1, got {gain}")
    excess = ((linear.amax(dim=1, keepdim=True) - threshold) / (1 - threshold)).clamp(0, 1)
    return linear * (1 + (gain - 1) * excess**2)


def quantise(display: Tensor) -> Tensor:
    """Round display values to 8 bits."""
    return torch.round(display.clamp(0, 1) * 255) / 255


# ITU-T T.81 Annex K, tables K.1 (luminance) and K.2 (chrominance)
_JPEG_LUMA = torch.tensor([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
], dtype=torch.float32).reshape(8, 8)  # fmt: skip
_JPEG_CHROMA = torch.full((8, 8), 99.0)
_JPEG_CHROMA[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
_RGB_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@cache
def _jpeg_constants(device: torch.device) -> tuple[Tensor, ...]:
    """Colour matrix and its inverse, and the tables of Y, Cb and Cr, once per device."""
    constants = (_RGB_TO_YCC, torch.linalg.inv(_RGB_TO_YCC), _JPEG_LUMA, _JPEG_CHROMA, _JPEG_CHROMA)
    return tuple(upload(constant, device) for constant in constants)


def _quantise_blocks(plane: Tensor, table: Tensor) -> Tensor:
    """Round trip of one plane (n, h, w), values in [-128, 127], through the quantised 8x8 cosine transform."""
    n, h, w = plane.shape
    padded = F.pad(plane[:, None], (0, -w % 8, 0, -h % 8), mode="replicate")[:, 0]
    blocks = padded.unfold(1, 8, 8).unfold(2, 8, 8)  # n, rows, columns, 8, 8
    frequency = torch.arange(8, device=plane.device, dtype=torch.float32)[:, None]
    dct = 0.5 * torch.cos((2 * frequency.T + 1) * frequency * math.pi / 16)
    dct[0] /= math.sqrt(2)
    coefficients = torch.round((dct @ blocks @ dct.T) / table) * table
    decoded = (dct.T @ coefficients @ dct).permute(0, 1, 3, 2, 4).reshape(n, *padded.shape[1:])
    return decoded[:, :h, :w]


def jpeg(display: Tensor, quality: int | Tensor) -> Tensor:
    """What JPEG compression leaves of a picture: YCbCr 4:2:0, quantised 8x8 blocks; the lossless rest is skipped.

    Args:
        display: (n, 3, h, w) in [0, 1].
        quality: 1 (worst) to 100, as in libjpeg; (n,) on the device of `display`: one per picture.
    Returns: (n, 3, h, w) in [0, 1]; at least 38 dB from what libjpeg makes, quality 30 and up (tested), on any device.
    """
    if isinstance(quality, int) and not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be 1 to 100, got {quality}")
    if display.shape[1] != 3:
        raise ValueError(f"jpeg needs 3 colour channels, got {display.shape[1]}")
    h, w = display.shape[-2:]
    percent: float | Tensor
    if isinstance(quality, Tensor):
        percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None, None, None]
    else:
        percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    to_ycc, to_rgb, *tables = _jpeg_constants(display.device)
    ycc = torch.einsum("dc,nchw->ndhw", to_ycc, torch.round(display.float().clamp(0, 1) * 255))
    planes = []
    for channel, table in enumerate(tables):
        table = torch.floor((table * percent + 50) / 100).clamp(1, 255)
        plane = ycc[:, channel] - (128 if channel == 0 else 0)
        if channel > 0:  # 4:2:0: colour at half resolution
            plane = F.avg_pool2d(F.pad(plane[:, None], (0, w % 2, 0, h % 2), mode="replicate"), 2)[:, 0]
        plane = _quantise_blocks(plane, table)
        if channel > 0:
            plane = F.interpolate(plane[:, None], scale_factor=2, mode="bilinear")[:, 0, :h, :w]
        planes.append(plane + (128 if channel == 0 else 0))
    rgb = torch.einsum("dc,nchw->ndhw", to_rgb, torch.stack(planes, dim=1))
    return (torch.round(rgb) / 255).clamp(0, 1)


@dataclass(frozen=True)
class Camera:
    """What happens to the light behind the shutter. Defaults: a clean 8-bit picture."""

    response: str | tuple[str, ...] = "gamma"  # a name in RESPONSES, or several to draw from
    exposure: Amount = 1.0  # light multiplied by this before the sensor; < 1: a dark scene
    highlights: Amount = 1.0  # how many times brighter than 1 the brightest light really was
    defocus: Amount = 0.0  # standard deviation of a Gaussian, pixels
    shot: Amount = 0.0  # noise variance per unit of light
    read: Amount = 0.0  # noise deviation of the electronics
    red_gain: Amount = 1.0  # white balance: what the sensor's red is multiplied with, and its noise
    blue_gain: Amount = 1.0
    jpeg_quality: int | Range | None = None  # None, or 0 for those without: lossless 8 bits

    def __post_init__(self):
        _names(self.response, "response", RESPONSES)
        for name in ("exposure", "defocus", "shot", "read", "red_gain", "blue_gain"):
            _check_amount(name, getattr(self, name))
        _check_amount("highlights", self.highlights, least=1)
        _check_amount("jpeg_quality", self.jpeg_quality or 1, least=1)

    @property
    def spread(self) -> float:
        """Pixels that defocus spreads light at most: three standard deviations."""
        return 3 * (self.defocus[1] if isinstance(self.defocus, tuple) else self.defocus)

    def draw(self, draws: Draws, device: torch.device) -> dict[str, Any]:
        """The values of one picture each: constants as they are, what is drawn (n, 1, 1, 1) on the device.

        A response is a number in the order of names; "gains" are those of the white balance, (n, 3, 1, 1).
        """
        names = ("exposure", "highlights", "shot", "read", "red_gain", "blue_gain", "jpeg_quality")
        values: dict[str, Any] = {name: draw_amount(getattr(self, name) or 0, draws) for name in names}
        values["response"] = 0 if isinstance(self.response, str) else draws.integers(len(self.response)).float()
        if drawn := {name: value for name, value in values.items() if isinstance(value, Tensor)}:
            table = upload(torch.stack(list(drawn.values())), device)  # all at once
            values |= dict(zip(drawn, table[..., None, None, None], strict=True))
        values["gains"] = 1.0  # a number where it is none: gray pictures have one channel
        if not self.red_gain == self.blue_gain == 1:
            one = torch.ones(len(draws), 1, 1, 1, device=device)
            values["gains"] = torch.cat([one * values["red_gain"], one, one * values["blue_gain"]], dim=1)
        return values


def _respond(responses: tuple[str, ...], way: int, which: Tensor, image: Tensor) -> Tensor:
    """Each image through its own of several responses: encoded (way 0) or decoded (1)."""
    answer = RESPONSES[responses[0]][way](image)
    for number, name in enumerate(responses[1:], start=1):
        answer = torch.where(which == number, RESPONSES[name][way](image), answer)
    return answer


def expose(light: Tensor, path: Tensor, size: int, defocus: Tensor | None = None) -> Tensor:
    """The mean light of an exposure: by one kernel per picture, by moved frames for the pictures that roll.

    light: (n, c, h, w). path (n, steps, 3) and defocus (n,), standard deviations in pixels, lie on the CPU: there a
    kernel's sum has a fixed order, and it is known who rolls. size: odd side of the kernels.
    """
    rolls = (path[..., 2] != 0).any(dim=1)
    if defocus is not None or not rolls.all():
        kernel = path_to_kernel(path * ~rolls[:, None, None], size)
        if defocus is not None:
            distance = torch.arange(size) - torch.arange(size)[:, None]
            spread = torch.exp(-0.5 * (distance / defocus.clamp_min(1e-3)[:, None, None]) ** 2)
            spread = spread / spread.sum(dim=1, keepdim=True)  # (n, size, size): a Gaussian in each column
            kernel = spread @ kernel @ spread.mT
        light = convolve(light, upload(kernel, light.device), padding="reflect")
    if rolls.any():
        rows = upload(rolls.nonzero()[:, 0], light.device)
        rolled = average_frames(light.index_select(0, rows), upload(path[rolls], light.device))
        light = light.index_copy(0, rows, rolled)
    return light


def resampling(scale: Tensor, source: int, target: int) -> Tensor:
    """(n, target, source) matrices that scale one axis by `scale` (n,) <= 1 about its middle, cutting what is outside.

    Antialiased cubic weights (Keys 1981, a = -1/2), as most programs use; scale 1 cuts only. source - target: even.
    """
    if not ((scale > 0) & (scale <= 1)).all():
        raise ValueError(f"scale must be above 0 and at most 1, got {scale.tolist()}")
    place = (torch.arange(target) - (target - 1) / 2) / scale[:, None] + (source - 1) / 2
    distance = ((torch.arange(source) - place[:, :, None]) * scale[:, None, None]).abs()
    near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(dim=-1, keepdim=True)


def photograph(
    sharp: Tensor, motion: Motion, camera: Camera, draws: Draws, margin: int = 0, resize: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take one blurry photograph of each sharp image, and the sharp one that a still camera would have taken.

    Args:
        sharp: (n, c, h, w) display values in [0, 1].
        draws: one stream per image, on the CPU; decides path, camera and noise.
        margin: pixels cut from each side at the end, so that no light is missing at the borders.
        resize: (n, h', h) matrices of `resampling`, on the CPU, for square images: the sensor adds up neighbours.
    Returns: (sharp, blurry), both (n, c, h - 2 margin, w - 2 margin), display values in [0, 1]; h' for h if resized.
    """
    path, values, device = motion.draw(draws), camera.draw(draws, sharp.device), sharp.device
    responses, which = _names(camera.response, "response", RESPONSES), values["response"]
    light = expand_highlights(_respond(responses, 1, which, sharp), values["highlights"]) * values["exposure"]
    defocus = draw_amount(camera.defocus, draws) + torch.zeros(len(sharp)) if camera.defocus != 0 else None
    # Wider than the paths' reach: kernels of another size would round the pictures of earlier editions differently
    half = math.ceil(max(motion.length[1] + 1, motion.reach + camera.spread))
    blurred = expose(light, path, 2 * half + 1, defocus)
    corners = [(margin, margin)] * len(sharp)
    if resize is not None:
        resize = upload(resize, device)[:, None]
        # Cut from any corner at the end, so that the blocks of JPEG begin anywhere
        corners = draws.integers(2 * margin + 1, 2).tolist()
        light, blurred = (resize @ image.clamp(0, 1) @ resize.mT for image in (light, blurred))
    if camera.shot or camera.read:
        blurred = sensor_noise(blurred.clamp(0, 1), values["shot"], values["read"], draws, values["gains"])
    y0, x = (quantise(_respond(responses, 0, which, image)) for image in (light, blurred))
    quality = values["jpeg_quality"]
    if isinstance(quality, Tensor):
        x = torch.where(quality > 0, jpeg(x, quality.flatten().round().clamp_min(1)), x)
    elif camera.jpeg_quality is not None:
        x = jpeg(x, quality)
    pair, (h, w) = torch.stack([y0, x]), x.shape[-2:]
    inside = [
        pair[:, number, :, top : top + h - 2 * margin, left : left + w - 2 * margin]
        for number, (top, left) in enumerate(corners)
    ]
    y0, x = torch.stack(inside, dim=1)
    return y0, x

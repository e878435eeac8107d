"""How good is it, and how sure are we: metrics, intervals, models x domains, results files."""

import hashlib
import json
import platform
import re
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from . import __version__
from .data import Contents, Domain, Pairs, SyntheticPairs, get_domain, make_contents, to_display
from .guidance import to_gray
from .machine import atomic_write
from .model import WEIGHTS, Model
from .sample import Setting, draw_samples

# --- metrics: (estimate, truth), both (n, c, h, w) display values in [0, 1] -> (n,) ---------------------------


class MetricUnavailable(RuntimeError):
    """The metric cannot be computed here; the message says why. It is never replaced by another."""


def psnr(estimate: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, peak 1; equal images give infinity.

    >>> psnr(torch.full((1, 3, 8, 8), 0.75), torch.full((1, 3, 8, 8), 0.5))
    tensor([12.0412])
    """
    return -10 * torch.log10(((estimate - truth) ** 2).flatten(1).mean(dim=1))


# In TF32, cuDNN's default, a difference of squares would lose its digits: an SSIM of 0.89 in the place of 0.95
exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@exact
def ssim(estimate: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang 2004), Gaussian window 11x11, by torchmetrics."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(estimate, truth, data_range=1.0, reduction="none")
    return torch.as_tensor(found).reshape(-1)


ALEXNET = WEIGHTS / "metrics" / "lpips-alexnet.safetensors"  # its card, with origin and licence, lies beside it


@cache
@torch.inference_mode(False)  # made in a validation, it can be used anywhere
def _lpips_network(device: str) -> torch.nn.Module:
    import lpips

    # A training that is watched draws the same random numbers as one that is not
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
        warnings.simplefilter("ignore")  # lpips calls torchvision with an argument that is deprecated there
        network = lpips.LPIPS(net="alex", version="0.1", verbose=False, pnet_rand=True)
    features = load_file(ALEXNET)  # in place of the random ones; the layers above come with lpips
    network.net.load_state_dict(
        {key: features[f"features.{key.partition('.')[2]}"] for key in network.net.state_dict()}
    )
    return network.eval().requires_grad_(False).to(device)


@exact
def lpips_distance(estimate: Tensor, truth: Tensor) -> Tensor:
    """LPIPS (Zhang 2018), AlexNet, version 0.1: 0 for equal pictures, rarely above 1. One channel counts as gray."""
    network = _lpips_network(str(estimate.device))
    estimate, truth = (image.expand(-1, 3, -1, -1) * 2 - 1 for image in (estimate, truth))
    return network(estimate, truth).reshape(-1)


def radial_spectrum(image: Tensor) -> Tensor:
    """Mean log10 power of each image at each radial frequency: (n, c, h, w) -> (n, min(h, w) // 2).

    A Hann window keeps the picture's borders from counting as edges. A floor of 1e-8 bounds the logarithm.
    """
    n, _, h, w = image.shape
    gray = image.mean(dim=1)
    window = torch.hann_window(h, device=image.device)[:, None] * torch.hann_window(w, device=image.device)
    gray = (gray - gray.mean(dim=(1, 2), keepdim=True)) * window
    log_power = torch.log10(torch.fft.fft2(gray).abs() ** 2 / (h * w) + 1e-8)
    frequency_y = torch.fft.fftfreq(h, device=image.device)[:, None]
    frequency_x = torch.fft.fftfreq(w, device=image.device)[None, :]
    bins = min(h, w) // 2
    ring = (torch.sqrt(frequency_y**2 + frequency_x**2) * 2 * bins).long().clamp(max=bins).reshape(-1)
    sums = torch.zeros(n, bins + 1, device=image.device).index_add_(1, ring, log_power.reshape(n, -1))
    counts = torch.zeros(bins + 1, device=image.device).index_add_(0, ring, torch.ones_like(log_power[0]).reshape(-1))
    return (sums / counts.clamp_min(1))[:, :bins]  # the corners beyond the Nyquist ring are left out


def spectral_distance(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of log10 radial power spectra: is there as much detail at each scale as there should be?

    Full-reference: a distortion of another kind than PSNR. It sees how much detail, not where.
    """
    return (radial_spectrum(estimate) - radial_spectrum(truth)).abs().mean(dim=1)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": psnr,
    "ssim": ssim,
    "lpips": lpips_distance,
    "spectral": spectral_distance,
}
IDENTICAL = 100.0  # dB: what counts for equal pictures, whose PSNR is infinite and has no mean
SMALLEST = {"ssim": 11, "lpips": 31}  # pixels per side: a window, and AlexNet's strides
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "spectral": False}
RESULTS = Path(__file__).with_name("results")  # results files and drawings that the lessons show


def measure(estimate: Tensor, truth: Tensor, metrics: tuple[str, ...]) -> dict[str, list[float]]:
    """Scores of each image. Arguments in the model's range [-1, 1]; see METRICS for the names.

    Raises: MetricUnavailable, or ImportError, where a metric cannot be computed.

    >>> measure(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16), ("ssim",))
    {'ssim': [1.0, 1.0]}
    """
    scores = {}
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
        if (side := min(estimate.shape[-2:])) < SMALLEST.get(name, 0):
            raise MetricUnavailable(f"{name} needs sides of at least {SMALLEST[name]} pixels, not {side}")
        values = METRICS[name](to_display(estimate), to_display(truth))
        scores[name] = (values.clamp(max=IDENTICAL) if name == "psnr" else values).tolist()
    return scores


def available(metrics: tuple[str, ...], side: int = 32) -> tuple[tuple[str, ...], dict[str, str]]:
    """(metrics that work here on pictures of `side` pixels, reason for each that does not)."""
    usable, reasons, probe = [], {}, torch.zeros(1, 3, side, side)
    for name in metrics:
        try:
            measure(probe, probe, (name,))
            usable.append(name)
        except (MetricUnavailable, ImportError) as error:
            reasons[name] = str(error)
    return tuple(usable), reasons


# Not among METRICS: by these a blurry picture is not worse than a sharp one

EDGE = 0.15  # change of luma, in display values over two pixels, from which on an edge is strong
NEAR = 2  # pixels within which the truth may have that edge


def invented_edges(estimate: Tensor, truth: Tensor) -> Tensor:
    """Share of the strong edges of each image where the truth has none; 0 where there are none at all.

    An edge is strong where the gradient of luma (central differences) is over EDGE, and invented if the truth's is
    below half of that everywhere within NEAR pixels.
    """
    strength, true_strength = edge_strength(estimate), edge_strength(truth)
    nearby = F.max_pool2d(true_strength, 2 * NEAR + 1, stride=1, padding=NEAR)
    strong = strength > EDGE
    invented = strong & (nearby < EDGE / 2)
    return invented.flatten(1).sum(dim=1) / strong.flatten(1).sum(dim=1).clamp_min(1)


def edge_strength(image: Tensor) -> Tensor:
    """Change of luma over two pixels, at each pixel: (n, c, h, w) in [0, 1] -> (n, 1, h, w)."""
    gray = to_gray(image)
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    along_x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    along_y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.sqrt(along_x**2 + along_y**2)


def variance_and_bias(
    samples: Float[Tensor, "k n c h w"], truth: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(V, B) of each picture, means over its pixels: variance of the samples, and squared bias of their mean.

    Both are free of the number of samples, k >= 2: the mean of k samples still has a variance of V / k, which is taken
    from B. A sampler of the posterior has V = B on average, since the truth is one more sample of it; a point estimate
    has V = 0. Diversity is mean V / (mean V + mean B): one half, and 0.
    """
    if len(samples) < 2:
        raise ValueError(f"a variance needs at least 2 samples, got {len(samples)}")
    variance = samples.var(dim=0).flatten(1).mean(dim=1)
    error = ((samples.mean(dim=0) - truth) ** 2).flatten(1).mean(dim=1)
    return variance, error - variance / len(samples)


def student_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95 % interval of the mean of independent values, at least 2.

    For means of training runs, which are the unit of chance in a comparison of methods.
    """
    from scipy.stats import t as student

    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}")
    mean = statistics.mean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def bootstrap_interval(
    values: Float[Tensor, " n"], draws: int = 2000, seed: int = 0, pictures: Tensor | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979); n >= 2. Of fewer than some 20 it is too short.

    pictures: int64 (n,), of which picture each value is. They are drawn with all their values, since crops of a picture
        are alike.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must have shape (n,) with n >= 2, got {tuple(values.shape)}")
    group = torch.arange(len(values)) if pictures is None else pictures.unique(return_inverse=True)[1]
    counts, generator = group.bincount(), torch.Generator().manual_seed(seed)
    if len(counts) < 2:
        raise ValueError("crops of a single picture have no interval: take more pictures, or more crops")
    sums = counts.double().zero_().index_add_(0, group, values.cpu().double())
    picks = torch.randint(len(counts), (draws, len(counts)), generator=generator)
    means = sums[picks].sum(dim=1) / counts[picks].sum(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def summary(values: list[float], pictures: Tensor | None = None) -> dict[str, float]:
    """Mean and its 95 % interval, for results files; pictures: as for `bootstrap_interval`."""
    tensor = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(tensor, pictures=pictures)
    return {"mean": round(float(tensor.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


# --- models x domains -----------------------------------------------------------------------------------------

TEST_SEED = 7_000  # of test pairs and test scenes: training uses seed 0 for its scenes
VALIDATION_SEED = 5_000  # of the pairs on which a sampler's setting is chosen


class ScoredPairs(Pairs, Protocol):
    """Pairs that tell which picture each crop is of: int64 (n,), on the CPU, for int64 indices (n,)."""

    def pictures(self, index: Tensor) -> Tensor: ...


def domain_pairs(
    domain: str | Domain, content: str, count: int, seed: int, device: torch.device | str = "cpu", gray: bool = False
) -> SyntheticPairs:
    """Held-out pairs of a domain: as many fresh sharp images as pairs, from another seed than training's.

    content: what the model was trained on the kind of: its name, or a folder of other pictures of that kind.
    """
    name = domain
    domain = get_domain(domain) if isinstance(domain, str) else domain
    if domain.new_content:  # photographs for what learnt scenes, scenes for what learnt photographs
        content = "photos" if content == "scenes" else "scenes"
    contents: Contents = make_contents(content, count, seed)
    pairs = SyntheticPairs(contents, domain, seed, device, gray)
    pairs.name = f"{name} on {contents.name}, seed {seed}"
    return pairs


def sample_and_mean(model: Model, x: Tensor, setting: Setting, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(one sample, the mean of setting.samples of which it is the first), both (b, c, h, w)."""
    samples = list(draw_samples(model, x, setting, generator))
    return samples[0], torch.stack(samples).mean(dim=0)


def evaluate(
    models: dict[str, Model],
    domains: dict[str, ScoredPairs],
    setting: Setting,
    count: int = 200,
    size: int = 96,
    metrics: tuple[str, ...] = tuple(METRICS),
    batch: int = 25,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Score every model, and the blurry input, on every domain.

    Args:
        models: by name; a diffusion model NAME gives rows "NAME" (one sample) and "NAME-mean".
        domains: pairs by name; their first `count` crops of size x size are the test set, the same for all.
    Returns: {"domains": {domain: {"data", "count", "scores": {row: {metric: {mean, low, high}}}, "difference":
        {"A - B": ...} of mean rows with paired 95 % intervals, "per_image"}}, "unavailable": {metric: reason}}.
    """
    usable, unavailable = available(metrics, size)
    results = {}
    for domain, pairs in domains.items():
        which = pairs.pictures(torch.arange(count))
        rows: dict[str, dict[str, list[float]]] = {}
        for index in torch.arange(count).split(batch):
            y0, x = (image.to(device) for image in pairs.crops(index, size))
            outputs = {"blurry": x}
            for name, model in models.items():
                generator = torch.Generator(device).manual_seed(TEST_SEED + int(index[0]))
                outputs[name], mean = sample_and_mean(model, x, setting, generator)
                if model.config.kind != "regression":
                    outputs[f"{name}-mean"] = mean
            for row, output in outputs.items():
                for metric, values in measure(output, y0, usable).items():
                    rows.setdefault(row, {}).setdefault(metric, []).extend(values)
        results[domain] = {
            "data": pairs.name,
            "count": count,
            "size": size,
            "scores": {row: {m: summary(v, which) for m, v in scores.items()} for row, scores in rows.items()},
            "difference": differences(rows, which),
            "per_image": {
                row: {m: [round(s, 4) for s in v] for m, v in scores.items()} for row, scores in rows.items()
            },
        }
        best = {row: round(s["psnr"]["mean"], 2) for row, s in results[domain]["scores"].items() if "psnr" in s}
        progress(f"{domain}: PSNR {best}")
    return {"domains": results, "unavailable": unavailable}


def differences(rows: dict[str, dict[str, list[float]]], pictures: Tensor | None = None) -> dict[str, dict]:
    """Paired differences, row by row minus each row before it: {"B - A": {metric: {mean, low, high}}}."""

    def paired(a: list[float], b: list[float]) -> dict[str, float]:
        return summary([v - u for u, v in zip(a, b, strict=True)], pictures)

    pairs = [(a, b) for i, b in enumerate(rows) for a in list(rows)[:i]]
    return {f"{b} - {a}": {metric: paired(rows[a][metric], rows[b][metric]) for metric in rows[b]} for a, b in pairs}


def table(results: dict, metric: str = "psnr") -> str:
    """Scores as a Markdown table, domains in rows, models in columns: mean ± half the width of the 95 % interval."""
    digits = 2 if metric == "psnr" else 3
    rows = list(next(iter(results["domains"].values()))["scores"])
    lines = ["| domain | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for domain, entry in results["domains"].items():
        cells = [entry["scores"][row][metric] for row in rows]
        texts = [f"{c['mean']:.{digits}f} ± {(c['high'] - c['low']) / 2:.{digits}f}" for c in cells]
        lines.append(f"| {domain} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


# --- results files: JSON written by commands, with all that says how they came about -----------------------------


def provenance(command: list[str] | None = None) -> dict:
    """What a results file must say about how it came about."""
    scoring = ("torchmetrics", "lpips", "scikit-image", "torch-fidelity", "opencv-python-headless")
    packages = ("torch", "torchvision", "numpy", *scoring)
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "command": "python -m tinymsg " + shlex.join(sys.argv[1:] if command is None else command),
        "tinymsg": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages if name in installed},
    }


def write_results(path: str | Path, results: dict) -> None:
    """Write a results file: JSON with a digest of its content, atomic, with non-finite numbers refused."""
    text = json.dumps({"digest": _digest(results)} | results, indent=1, allow_nan=False)
    # One list of numbers per line: readable differences between two versions of a file. Its line breaks stand between
    # brackets; within a string JSON writes \n
    text = re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text)
    with atomic_write(path) as partial:
        partial.write_text(text + "\n")


def read_results(path: str | Path) -> dict:
    """Read what `write_results` wrote: a file, or one of RESULTS by its bare name.

    Raises: ValueError if it is not as the command wrote it.
    """
    shipped = RESULTS / f"{path}.json"
    results = json.loads((shipped if shipped.is_file() else Path(path)).read_text())
    if results.pop("digest", None) != _digest(results):
        raise ValueError(
            f"{path} is not as a command wrote it: something was changed by hand; run its command again "
            f"({results.get('command', 'not stated')})"
        )
    return results


def _digest(results: dict) -> str:
    return hashlib.sha256(json.dumps(results, sort_keys=True, allow_nan=False).encode()).hexdigest()

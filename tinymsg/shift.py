"""Why does a model fail elsewhere? How far its activations move between domains, and how touchy its output is.

Two questions that no table of PSNR answers. Does the guidance branch see less of a change of domain than the branch
that takes the blurry image itself? And does a small change of the input change the output less with guidance?
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .evaluate import Setting, summary
from .model import Model
from .train import use_bf16


@contextmanager
def _recorded(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Outputs of some modules during the block, by name."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.__setitem__(name, out))
        for name, module in modules.items()
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def activations(model: Model, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What two branches make of blurry images: the denoiser's encoder, and the structure nets.

    The encoder is looked at where sampling starts, at pure noise, the same noise for all images of an index, before
    guidance is added at that level.

    Args:
        x: (n, c, h, w) in [-1, 1], sides multiples of model.multiple.
        seed: of the noise.
    Returns: {"input 1" .. "input L-1", "guidance k" of each scale: (n, 2 * channels)}, mean and standard deviation
        of every channel over the image, float32.
    """
    modules = {f"input {k}": level[-1] for k, level in enumerate(model.unet.down) if k > 0}
    if model.config.scales:
        modules |= {
            f"guidance {k}": net.blocks for k, net in zip(model.config.scales, model.guidance.nets, strict=False)
        }
    noise = torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(seed), device=x.device)
    level = torch.zeros(len(x), device=x.device)
    bf16 = use_bf16(model.config.precision, x.device)
    with (
        torch.inference_mode(),
        torch.autocast(x.device.type, torch.bfloat16, enabled=bf16),
        _recorded(modules) as seen,
    ):
        model(noise, x, level)
    return {
        name: torch.cat([seen[name].float().mean(dim=(2, 3)), seen[name].float().std(dim=(2, 3))], dim=1)
        for name in modules
    }


def mmd(a: Tensor, b: Tensor, width: float) -> float:
    """Maximum mean discrepancy of two samples, unbiased, Gaussian kernel (Gretton 2012, eq. 3); 0 for equal laws.

    Args:
        a: (n, d), b: (m, d), n and m at least 2.
        width: of the kernel, a distance.
    Returns: the squared discrepancy: about 0 for two samples of one law (it may fall below), at most 2.
    """
    kernel = lambda u, v: torch.exp(-(torch.cdist(u.double(), v.double()) ** 2) / (2 * width**2))
    n, m = len(a), len(b)
    within = (kernel(a, a).sum() - n) / (n * (n - 1)) + (kernel(b, b).sum() - m) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def domain_shift(
    reference: Tensor, other: Tensor, held_out: Tensor, draws: int = 100, seed: int = 0
) -> dict[str, dict]:
    """How far `other` lies from `reference`, in the units of the reference's own spread.

    Every coordinate is divided by its standard deviation over the reference, and the kernel is as wide as the median
    distance within it: layers of different scale and size can be compared.

    Args:
        reference, other, held_out: (n, d) activations; held_out: the reference's domain, other images.
    Returns: {"shift": ..., "none": ...}, each {mean, low, high} of `mmd` over random halves of the images (95 %): of
        `other`, and of `held_out`, which tells what no shift at all looks like.
    """
    scale = reference.std(dim=0).clamp_min(1e-6)
    reference, other, held_out = reference / scale, other / scale, held_out / scale
    distances = torch.cdist(reference, reference)
    width = float(distances[~torch.eye(len(reference), dtype=torch.bool, device=reference.device)].median())
    generator = torch.Generator().manual_seed(seed)
    halves = lambda values: values[
        torch.randperm(len(values), generator=generator)[: len(values) // 2].to(values.device)
    ]
    found = {"shift": [], "none": []}
    for _ in range(draws):
        half = halves(reference)
        found["shift"].append(mmd(half, halves(other), width))
        found["none"].append(mmd(half, halves(held_out), width))
    table = {}
    for name, values in found.items():
        low, high = torch.quantile(torch.tensor(values), torch.tensor([0.025, 0.975])).tolist()
        table[name] = {"mean": round(sum(values) / draws, 5), "low": round(low, 5), "high": round(high, 5)}
    return table


def sensitivity(model: Model, x: Tensor, setting: Setting, size: float = 0.01, seed: int = 0) -> Tensor:
    """How much a small change of the blurry image changes the restored one: |change of output| / |change of input|.

    Args:
        x: (n, c, h, w) in [-1, 1].
        size: standard deviation of the white noise that is added to x (2 / 255 is one step of an 8-bit file).
        seed: of that noise, and of the sampler's, which is the same both times.
    Returns: (n,); 1 passes a change on as it is, more amplifies it.
    """
    nudge = size * torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(seed), device=x.device)
    moved = (x + nudge).clamp(-1, 1)
    first, second = (
        setting.restore(model, image, torch.Generator(x.device).manual_seed(seed + 1))[0] for image in (x, moved)
    )
    return (second - first).flatten(1).norm(dim=1) / (moved - x).flatten(1).norm(dim=1).clamp_min(1e-12)


def study_shift(
    models: dict[str, Model], images: dict[str, Tensor], held_out: Tensor, setting: Setting, batch: int = 20
) -> dict[str, dict]:
    """Both questions for several models and domains.

    Args:
        models: by name.
        images: {domain: blurry images (n, c, h, w)}; the first is the training domain, the reference.
        held_out: other blurry images of the training domain.
    Returns: {"shift": {model: {branch: {domain: {"shift", "none"}}}}, "sensitivity": {model: {domain: {mean, low, high}}}}.
    """
    shift, touchy = {}, {}
    for name, model in models.items():
        gather = lambda x, model=model: {
            branch: torch.cat(parts)
            for branch, parts in _transposed(
                [activations(model, part, seed) for seed, part in enumerate(x.split(batch))]
            ).items()
        }
        seen = {domain: gather(x) for domain, x in images.items()}
        quiet = gather(held_out)
        reference, *others = seen
        shift[name] = {
            branch: {domain: domain_shift(values, seen[domain][branch], quiet[branch]) for domain in others}
            for branch, values in seen[reference].items()
        }
        touchy[name] = {}
        for domain, x in images.items():
            parts = [sensitivity(model, part, setting, seed=seed) for seed, part in enumerate(x.split(batch))]
            touchy[name][domain] = summary(torch.cat(parts).tolist())
    return {"shift": shift, "sensitivity": touchy}


def _transposed(rows: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [row[name] for row in rows] for name in rows[0]}

"""A denoiser as diffusers and deepinv call theirs, and pairs as a dataset of torch. Needs none of those libraries."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Pairs, check_images, pad_to_multiple, to_display, to_model
from ..model import Denoise, Model


def for_diffusers(denoise: Denoise, scheduler: Any) -> Callable[[Tensor, Tensor | int], Tensor]:
    """ask(z_t, t) -> what a scheduler of diffusers wants of its network at t, whatever its prediction_type.

    Args:
        denoise: of `sample.prepare(model, x)`, or `model.denoiser(x)`.
        scheduler: one with alphas_cumprod (DDPM, DDIM, DPM-Solver++, ...), of any betas: the model knows all levels.
            With trained_betas=setting.schedule().beta[1:].numpy() it walks through the levels of a `Setting`.
    Raises: ValueError for one that clips to [-1, 1]: z may be a residual, and denoise clips the picture itself.
    """
    config = scheduler.config
    if config.get("clip_sample") or config.get("thresholding"):
        raise ValueError(
            "a residual is not within [-1, 1]: build the scheduler with clip_sample=False, thresholding=False"
        )

    def ask(z_t: Tensor, t: Tensor | int) -> Tensor:
        alpha_bar = float(scheduler.alphas_cumprod[int(t)])
        a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        z0_hat = denoise(z_t, torch.full((len(z_t),), a, device=z_t.device))
        eps_hat = (z_t - a * z0_hat) / s
        return {"sample": z0_hat, "epsilon": eps_hat, "v_prediction": a * eps_hat - s * z0_hat}[config.prediction_type]

    return ask


class GaussianDenoiser(nn.Module):
    """denoiser(y, sigma), as deepinv's: E[y0 | y, x] of y = y0 + sigma n, all (b, c, h, w), pictures in [0, 1].

    x is the blurry picture, which a model here always knows; its guidance is computed once, on its device.
    sigma: a number, or one for each picture.
    """

    def __init__(self, model: Model, x: Tensor):
        super().__init__()
        check_images(to_model(x), model.config.channels)
        self.model, self.x = model, self._padded(x, model)
        with torch.no_grad():
            self.denoise = model.denoiser(self.x)

    def forward(self, y: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        """The picture without its noise, in [0, 1]."""
        config = self.model.config
        spread = torch.as_tensor(sigma, dtype=torch.float32, device=y.device).flatten().expand(len(y))
        spread = 2 * spread * (config.residual_scale if config.residual else 1.0)
        level = (1 + spread**2).rsqrt()  # z0 + spread n, times this, is z_t (Ho 2020, eq. 4)
        z_t = level[:, None, None, None] * self.model.encode(self._padded(y, self.model), self.x)
        y0_hat = self.model.decode(self.denoise(z_t, level), self.x)
        return to_display(y0_hat)[..., : y.shape[-2], : y.shape[-1]]

    @staticmethod
    def _padded(image: Tensor, model: Model) -> Tensor:
        return pad_to_multiple(to_model(image.float()), model.multiple, model.config.dims)


class PairsDataset(Dataset):
    """The first `count` crops of a source of pairs: item i is (y0, x), both (c, size, size) in [-1, 1].

    A DataLoader gets whole batches at once. Sources on a GPU want num_workers=0.
    """

    def __init__(self, pairs: Pairs, count: int, size: int):
        self.pairs, self.count, self.size = pairs, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([range(self.count)[i]])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(*self.pairs.crops(torch.tensor(indices), self.size), strict=True))

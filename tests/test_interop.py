"""Beside other libraries: diffusers' schedulers, deepinv's solvers, torchmetrics, torch's datasets."""

import pytest
import torch
from miniatures import make_gopro
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from tinymsg.data import SyntheticPairs, scene_contents, to_display, to_model
from tinymsg.datasets.folders import PairedImages, folder_pairs
from tinymsg.datasets.packed import PackedPairs
from tinymsg.datasets.packing import pack
from tinymsg.evaluate import IDENTICAL, measure
from tinymsg.interop.adapters import GaussianDenoiser, PairsDataset, for_diffusers
from tinymsg.interop.metrics import Score
from tinymsg.model import pretrained
from tinymsg.paper.choose import HeldOut
from tinymsg.sample import Setting, ancestral, ddim, dpm_solver, prepare, restore
from tinymsg.studies.signals import SignalPairs, box_kernels
from tinymsg.training.validation import WithoutHeldOut

# --- diffusers ----------------------------------------------------------------------------------------------

SOLVER = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "timestep_spacing": "trailing"}
SCHEDULERS = {  # ours, theirs, what theirs is built with, what its step takes
    "ancestral": (ancestral, "DDPMScheduler", {"clip_sample": False}, {}),
    "ddim": (ddim, "DDIMScheduler", {"clip_sample": False}, {}),
    "ddim, eta 0.5": (lambda *a: ddim(*a, eta=0.5), "DDIMScheduler", {"clip_sample": False}, {"eta": 0.5}),
    "dpm_solver": (dpm_solver, "DPMSolverMultistepScheduler", SOLVER, {}),
}


def scheduler(kind: str, setting: Setting, **options):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    betas = setting.schedule().beta[1:].numpy()
    found = getattr(diffusers, kind)(len(betas), trained_betas=betas, **options)
    found.set_timesteps(setting.steps)
    return found


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers makes arrays of tensors
@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_samplers_are_those_of_diffusers(name, prediction, tiny_model, images):
    """The same model, noise and levels: every step of every sampler."""
    ours, kind, options, of_a_step = SCHEDULERS[name]
    setting = Setting(steps=8, max_noise=0.6)
    theirs = scheduler(kind, setting, prediction_type=prediction, **options)
    denoise = prepare(tiny_model(), images()[1]).denoise
    ask = for_diffusers(denoise, theirs)
    y = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    z, draws = y, torch.Generator().manual_seed(4)
    with torch.inference_mode():
        chain = list(ours(denoise, setting.schedule(), y, torch.Generator().manual_seed(4)))
        for t, (_, z_t, _) in zip(theirs.timesteps, chain, strict=True):
            z = theirs.step(ask(z, t), t, z, generator=draws, **of_a_step).prev_sample
            torch.testing.assert_close(z, z_t, rtol=0, atol=2e-5)


def test_a_shipped_model_restores_by_a_scheduler(images):
    model, x = pretrained("scenes-plain"), images()[1]
    setting = Setting("ddim", steps=3)
    theirs, prepared = (
        scheduler("DDIMScheduler", setting, prediction_type="sample", clip_sample=False),
        prepare(model, x),
    )
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    ask = for_diffusers(prepared.denoise, theirs)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=prepared.bf16):
        for t in theirs.timesteps:
            z = theirs.step(ask(z, t), t, z).prev_sample
        found = model.decode(z, x)
    torch.testing.assert_close(found, restore(model, x, setting, torch.Generator().manual_seed(0)), rtol=0, atol=0.02)


def test_a_scheduler_that_clips_is_refused():
    for options in ({}, {"clip_sample": False, "thresholding": True}):
        with pytest.raises(ValueError, match="clip_sample"):
            for_diffusers(lambda z, level: z, scheduler("DDIMScheduler", Setting(), **options))


# --- deepinv ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """(y0, x) in [0, 1]: a scene, and the same blurred by a known kernel; sides that need padding."""
    y0 = SyntheticPairs(scene_contents(2, seed=3), "gopro_like").crops(torch.arange(1), 61)[0]
    kernel = torch.ones(1, 1, 5, 5) / 25
    padded = torch.nn.functional.pad(to_display(y0), (2, 2, 2, 2), mode="circular")
    return to_display(y0), torch.nn.functional.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)


def psnr(estimate, truth) -> float:
    return measure(to_model(estimate), to_model(truth), ("psnr",))["psnr"][0]


@pytest.mark.parametrize("name", ["scenes-guided", "scenes-plain"])
def test_a_denoiser_takes_the_noise_away(name, pair):
    y0, x = pair
    denoiser = GaussianDenoiser(pretrained(name), x)
    for sigma in (0.1, 0.5):
        y = y0 + sigma * torch.randn(y0.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = denoiser(y, sigma)
            torch.testing.assert_close(denoiser(y, torch.tensor([[[[sigma]]]]), extra=None), found)
        assert found.shape == y.shape and psnr(found, y0) > psnr(y, y0) + 3


def test_its_noise_is_the_samplers(tiny_model, images):
    """denoiser(y, sigma) is denoise(z_t, level) of the z_t that has this noise."""
    y0, x = images()
    for changes in ({}, {"residual": False, "predict": "v"}):
        model = tiny_model(**changes)
        n, level = torch.randn(y0.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.9])
        a = level[:, None, None, None]
        z_t = a * model.encode(y0, x) + (1 - a**2).sqrt() * n
        scale = 2 * (model.config.residual_scale if model.config.residual else 1)
        sigma = (1 - level**2).sqrt() / level / scale
        with torch.no_grad():
            wanted = to_display(model.decode(model.denoiser(x)(z_t, level), x))
            found = GaussianDenoiser(model, to_display(x))(to_display(y0) + sigma[:, None, None, None] * n, sigma)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_solver_of_deepinv_takes_it(pair):
    """Half quadratic splitting: the kernel is known to the solver, the picture to the denoiser."""
    deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed")
    y0, x = pair
    physics = deepinv.physics.BlurFFT(img_size=(3, 61, 61), filter=torch.ones(1, 1, 5, 5) / 25)
    assert torch.allclose(physics(y0), x, atol=1e-5)
    x = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    prior = deepinv.optim.PnP(GaussianDenoiser(pretrained("scenes-guided"), x.clamp(0, 1)))
    data = deepinv.optim.L2()
    solver = deepinv.optim.HQS(data, prior=prior, stepsize=100.0, sigma_denoiser=0.05, max_iter=8)
    assert psnr(solver(x, physics), y0) > psnr(x, y0) + 3


# --- torchmetrics -------------------------------------------------------------------------------------------


def test_metrics_are_those_of_torchmetrics(images):
    y0, x = images(4, 3, 32, 40)
    y0, x = to_display(y0), to_display(x)
    theirs = {
        "psnr": PeakSignalNoiseRatio(1.0, reduction="elementwise_mean", dim=(1, 2, 3)),
        "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
    }
    ours = MetricCollection({name: Score(name) for name in ("psnr", "ssim", "lpips")})
    for part in (slice(0, 3), slice(3, 4)):  # batches of unlike size
        ours.update(x[part], y0[part])
    found, scores = ours.compute(), measure(to_model(x), to_model(y0), ("psnr", "ssim", "lpips"))
    for name, values in scores.items():
        assert float(found[name]) == pytest.approx(sum(values) / 4, abs=1e-5)
        if name in theirs:
            assert float(found[name]) == pytest.approx(float(theirs[name](x, y0)), abs=1e-5)
    assert float(ours["psnr"](x, x)) == IDENTICAL
    with pytest.raises(ValueError, match="lpips"):
        Score("beauty")


# --- datasets -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """GoPro in miniature, and packed."""
    folder = tmp_path_factory.mktemp("gopro")
    make_gopro(folder)
    pack(folder_pairs(folder), folder / "packed", "gopro", workers=1)
    return folder


FIVE = torch.arange(5)
SOURCES = {
    "synthetic": lambda folder: SyntheticPairs(scene_contents(2, seed=3), "gopro_like"),
    "everyday": lambda folder: SyntheticPairs(scene_contents(2, seed=3), "everyday", gray=True),
    "signals": lambda folder: SignalPairs(box_kernels(3, 5), 10),
    "folder": lambda folder: PairedImages(folder),
    "packed": lambda folder: PackedPairs(folder / "packed"),
    "crops to choose on": lambda folder: HeldOut(
        *SyntheticPairs(scene_contents(2, seed=3), "noise").crops(FIVE, 16), "x"
    ),
    "all but held out": lambda folder: WithoutHeldOut(PairedImages(folder), [0]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_pairs_are_a_dataset(source, folders):
    pairs = SOURCES[source](folders)
    dataset = PairsDataset(pairs, 5, 16)
    batches = list(DataLoader(dataset, batch_size=2))
    assert len(dataset) == 5 and [len(y0) for y0, _ in batches] == [2, 2, 1]
    for kind, wanted in enumerate(pairs.crops(FIVE, 16)):
        assert torch.equal(torch.cat([batch[kind] for batch in batches]), wanted)
        assert torch.equal(dataset[-1][kind], wanted[4]) and len(list(dataset)) == 5
    with pytest.raises(IndexError):
        dataset[5]

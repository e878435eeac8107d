import math

import pytest
import torch

from tinymsg import sample
from tinymsg.model import PREDICTIONS
from tinymsg.sample import SAMPLERS, check_images, ddim, get_sampler, pad_to_multiple, prepare, restore, restore_steps
from tinymsg.schedule import SCHEDULES, Schedule, linear, make_schedule


def seeded(seed: int = 0, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def perfect(y0: torch.Tensor):
    """The eps_fn that knows y0."""

    def eps_fn(y_t, noise_level):
        assert noise_level.shape == (len(y_t),)
        level = noise_level[:, None, None, None].to(y_t.dtype)
        return (y_t - level * y0) / torch.sqrt(1 - level**2)

    return eps_fn


# --- the contract, over all samplers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps, max_noise", [(1, 0.9), (2, 0.5), (10, 0.5), (60, 0.3), (40, 0.99)])
def test_a_perfect_eps_gives_y0_back(name, schedule, steps, max_noise, images, device):
    y0 = images()[0].to(device)
    plan = make_schedule(schedule, steps, max_noise)
    y_T = torch.randn(y0.shape, generator=seeded(1)).to(device)
    seen = list(get_sampler(name)(perfect(y0), plan, y_T, seeded(2, device)))
    assert [t for t, _, _ in seen] == list(range(steps - 1, -1, -1))
    assert all(y_t.shape == y0_hat.shape == y0.shape for _, y_t, y0_hat in seen)
    torch.testing.assert_close(seen[-1][1], y0, rtol=0, atol=2e-3)
    torch.testing.assert_close(seen[-1][2], y0, rtol=0, atol=2e-3)
    torch.testing.assert_close(seen[-1][1], seen[-1][2], rtol=0, atol=1e-4)  # no noise on the last y_t


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_tell_the_network_each_level_once(name):
    plan = linear(7, 0.5)
    levels = []

    def eps_fn(y_t, noise_level):
        levels.append(noise_level)
        return torch.zeros_like(y_t)

    list(SAMPLERS[name](eps_fn, plan, torch.zeros(2, 1, 2, 2), seeded()))
    expected = plan.noise_level[1:].flip(0).float()
    torch.testing.assert_close(torch.stack(levels), expected[:, None].expand(7, 2))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_repeat_with_their_generator(name, images):
    y0, y_T = images()
    run = lambda seed: list(SAMPLERS[name](lambda y, level: 0.5 * y, linear(6, 0.5), y_T, seeded(seed)))[-2][1]
    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1), run(2)) == (name != "ancestral")  # the others are deterministic


def test_unknown_sampler_lists_the_known():
    with pytest.raises(ValueError, match="unknown sampler 'euler'; known: " + ", ".join(SAMPLERS)):
        get_sampler("euler")


# --- what each sampler is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_with_eta_one_is_ancestral(schedule):
    plan = make_schedule(schedule, 12, 0.5)
    y_T = torch.randn(2, 3, 4, 4, generator=seeded(), dtype=torch.float64)
    eps_fn = lambda y, level: torch.tanh(y) * level[:, None, None, None]
    ancestral = list(SAMPLERS["ancestral"](eps_fn, plan, y_T, seeded(3)))
    as_ddim = list(ddim(eps_fn, plan, y_T, seeded(3), eta=1.0))
    for (_, y, y0_hat), (_, y_2, y0_hat_2) in zip(ancestral, as_ddim, strict=True):
        torch.testing.assert_close(y, y_2, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(y0_hat, y0_hat_2, rtol=1e-6, atol=1e-8)


def test_ddim_scales_the_posteriors_deviation_by_eta():
    plan = linear(5, 0.5)
    still = torch.zeros(1, 1, 200, 200)
    _, y, _ = next(ddim(lambda y, level: torch.zeros_like(y), plan, still, seeded(), eta=0.5))
    _, variance = plan.posterior(5, still, still)
    assert abs(y.var().item() / (0.25 * variance) - 1) < 0.04


MEAN, SD = 0.6, 0.3  # of the analytic data distribution


def gaussian_eps(y, noise_level):
    """The best eps_hat for data y0 ~ N(MEAN, SD^2): E[eps | y_t], in closed form."""
    a2 = noise_level.double()[:, None, None, None] ** 2
    return torch.sqrt(1 - a2) * (y - torch.sqrt(a2) * MEAN) / (a2 * SD**2 + 1 - a2)


def even_in_log_snr(steps: int) -> Schedule:
    """`steps` intervals of equal length in lambda, and a last one to zero noise."""
    lambda_t = torch.linspace(4, -4, steps + 1, dtype=torch.float64)
    return Schedule(torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(2 * lambda_t)]))


def flow_error(name: str, steps: int) -> float:
    """Largest error before the last, first-order step. The exact probability flow (Song 2021, Sec. 4.3) keeps the
    standardised value of a Gaussian."""
    plan = even_in_log_snr(steps)
    start, end = float(plan.alpha_bar[-1]), float(plan.alpha_bar[1])
    y_T = torch.linspace(-2, 2, 101, dtype=torch.float64)[None, None, None]
    standardised = (y_T - math.sqrt(start) * MEAN) / math.sqrt(start * SD**2 + 1 - start)
    expected = math.sqrt(end) * MEAN + math.sqrt(end * SD**2 + 1 - end) * standardised
    t, y, _ = list(SAMPLERS[name](gaussian_eps, plan, y_T))[-2]
    assert t == 1
    return float((y - expected).abs().max())


def test_ddim_is_of_first_and_dpm_solver_of_second_order():
    steps = (16, 32, 64, 128)
    first, second = ([flow_error(name, n) for n in steps] for name in ("ddim", "dpm_solver"))
    assert all(b < a / 2 for a, b in zip(first, second, strict=True)), (first, second)
    assert 0.8 < math.log2(first[-2] / first[-1]) < 1.2, first
    assert 1.7 < math.log2(second[-2] / second[-1]) < 2.3, second


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_moments_of_the_data(name):
    y_T = torch.randn(1, 1, 100, 100, generator=seeded(), dtype=torch.float64)
    y = list(SAMPLERS[name](gaussian_eps, linear(1024, 0.02), y_T, seeded(1)))[-1][1]
    assert abs(y.mean() - MEAN) < 5 * SD / 100
    assert abs(y.std() / SD - 1) < 0.03


# --- restore ----------------------------------------------------------------------------------------------------


def blurry(b: int = 1, c: int = 3, h: int = 16, w: int = 16) -> torch.Tensor:
    return torch.rand(b, c, h, w, generator=seeded(7)) * 2 - 1


@pytest.mark.parametrize("h, w", [(16, 16), (1, 1), (7, 5), (9, 24), (33, 2)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_size_comes_back(tiny_model, device, h, w, name):
    x = blurry(2, 3, h, w).to(device)
    output = restore(tiny_model().to(device), x, name, steps=2, generator=seeded(0, device))
    assert output.shape == x.shape and output.dtype == torch.float32 and output.device == x.device
    assert torch.isfinite(output).all() and output.min() >= -1 and output.max() <= 1
    assert not output.is_inference() and not output.requires_grad


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_prediction_and_schedule(tiny_model, predict, residual, schedule):
    model = tiny_model(predict=predict, residual=residual)
    for steps, max_noise in ((1, 0.01), (3, 0.99), (40, 0.9)):
        output = restore(model, blurry(), steps=steps, max_noise=max_noise, schedule=schedule, generator=seeded())
        assert torch.isfinite(output).all() and output.abs().max() <= 1


@pytest.mark.parametrize("steps", [300, 1000])
@pytest.mark.parametrize("name", SAMPLERS)
def test_so_much_noise_that_alpha_bar_vanishes(tiny_model, name, steps):
    """Below what float32 holds, there is a picture or a sentence: never a picture of NaN."""
    try:
        output = restore(
            tiny_model(widths=(16,), scales=(), crop=8), blurry(h=8, w=8), name, steps, 0.99, generator=seeded()
        )
    except ValueError as error:
        assert "noise" in str(error)
    else:
        assert torch.isfinite(output).all()


def test_signals(tiny_model):
    model = tiny_model(dims=1, channels=1)
    x = blurry(2, 1, 1, 45)
    assert restore(model, x, steps=2, generator=seeded()).shape == x.shape


def test_seeds_repeat_and_matter(tiny_model):
    model, x = tiny_model(), blurry()
    first, again, other = (restore(model, x, steps=3, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and (first - other).abs().mean() > 1e-4
    before = x.clone()
    restore(model, x)
    assert torch.equal(x, before)


def test_a_perfect_model_restores_the_picture(tiny_model, monkeypatch):
    """The whole path, with the network's output put in its place: padding, sampler, decoding, cropping."""
    model = tiny_model(predict="x0", residual=True)
    y0, x = blurry(2, 3, 11, 13), blurry(2, 3, 11, 13).flip(0)
    wanted = 2 * (pad_to_multiple(y0, 8) - pad_to_multiple(x, 8))
    monkeypatch.setattr(model.unet, "forward", lambda z_t, x, level, features: wanted)
    for name in SAMPLERS:
        torch.testing.assert_close(restore(model, x, name, steps=4, generator=seeded()), y0, rtol=0, atol=1e-3)


def test_samples_are_averaged(tiny_model):
    model, x = tiny_model(), blurry()
    generator = seeded(4)
    single = [restore(model, x, steps=2, generator=generator) for _ in range(3)]
    mean = restore(model, x, steps=2, samples=3, generator=seeded(4))
    torch.testing.assert_close(mean, torch.stack(single).mean(dim=0), rtol=0, atol=1e-5)


def count_calls(module: torch.nn.Module) -> list:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_guidance_runs_once_and_the_network_once_a_step(tiny_model):
    model = tiny_model()
    guidance, unet = count_calls(model.guidance), count_calls(model.unet)
    progress = []
    restore(model, blurry(), steps=4, samples=3, progress=lambda done, total: progress.append((done, total)))
    assert len(guidance) == 1 and len(unet) == 12
    assert progress == [(i, 12) for i in range(1, 13)]


def test_regression_takes_one_step_and_no_noise(tiny_model):
    model = tiny_model(kind="regression", scales=())
    unet = count_calls(model.unet)
    progress = []
    x = blurry()
    first = restore(model, x, steps=9, samples=5, generator=seeded(1), progress=lambda *p: progress.append(p))
    assert len(unet) == 1 and progress == [(1, 1)]
    torch.testing.assert_close(restore(model, x, generator=seeded(2)), first, rtol=0, atol=1e-4)
    with torch.no_grad():
        direct = model.decode(model(torch.zeros_like(x), x, torch.zeros(1))[0], x)
    torch.testing.assert_close(first, direct, rtol=0, atol=1e-4)


def test_restore_is_the_last_of_its_steps(tiny_model):
    model, x = tiny_model(), blurry(1, 3, 9, 10)
    steps = list(restore_steps(model, x, steps=5, generator=seeded(1)))
    assert [t for t, _, _ in steps] == [4, 3, 2, 1, 0]
    assert all(z.shape == y0_hat.shape == x.shape for _, z, y0_hat in steps)
    assert torch.equal(steps[-1][2], restore(model, x, steps=5, generator=seeded(1)))
    prepared = prepare(model, x)
    again = list(restore_steps(model, x, steps=5, generator=seeded(1), prepared=prepared))
    assert torch.equal(again[-1][2], steps[-1][2])


def test_nothing_leaks_between_the_steps(tiny_model):
    """Inference mode and autocast hold within a step alone, also when the caller stops half way."""
    model = tiny_model(precision="bf16")
    for _ in restore_steps(model, blurry(), steps=3, generator=seeded()):
        assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
        break
    assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")


def test_training_mode_does_not_matter_and_is_left_alone(tiny_model):
    model, x = tiny_model(), blurry()
    expected = restore(model, x, steps=2, generator=seeded())
    model.train()
    assert torch.equal(restore(model, x, steps=2, generator=seeded()), expected) and model.training


def test_half_precision_pictures(tiny_model):
    x = blurry().half()
    output = restore(tiny_model(), x, steps=2, generator=seeded())
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, restore(tiny_model(), x.float(), steps=2, generator=seeded()))


def test_the_network_sees_mirrored_padding():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 4)  # two rows more than can be mirrored: the last one repeats
    assert torch.equal(padded[0, 0, 0], torch.tensor([0.0, 1, 2, 2]))
    mirrored = pad_to_multiple(torch.arange(5.0).expand(1, 1, 7, 5), 4)
    assert torch.equal(mirrored[0, 0, 0], torch.tensor([0.0, 1, 2, 3, 4, 3, 2, 1])) and mirrored.shape[-2:] == (8, 8)
    same = torch.zeros(1, 1, 8, 16)
    assert pad_to_multiple(same, 8) is same
    assert pad_to_multiple(torch.zeros(1, 1, 1, 13), 8, dims=1).shape == (1, 1, 1, 16)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(3, 8, 8), r"shape \(b, 3, h, w\), got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), r"got \(1, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.zeros(1, 3, 0, 8), "empty"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point in .* got torch.uint8"),
        (torch.full((1, 3, 8, 8), 1.2), r"must lie in \[-1, 1\], got 1.2"),
        (torch.full((1, 3, 8, 8), 255.0), "must lie in"),
        (torch.full((1, 3, 8, 8), math.nan), "not finite"),
        (torch.full((1, 3, 8, 8), math.inf), "not finite"),
    ],
)
def test_wrong_pictures_say_what_was_expected(tiny_model, x, message):
    with pytest.raises(ValueError, match=message):
        restore(tiny_model(), x)
    with pytest.raises(ValueError, match=message):
        check_images(x, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sampler": "euler"}, "known: ancestral"),
        ({"schedule": "sigmoid"}, "known: linear"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"max_noise": 1.0}, "must lie in"),
        ({"max_noise": 0.0}, "must lie in"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_wrong_settings_say_what_is_allowed(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        restore(tiny_model(), blurry(), **arguments)


def test_a_new_sampler_needs_only_the_registry(tiny_model, monkeypatch):
    monkeypatch.setitem(sample.SAMPLERS, "mine", SAMPLERS["ddim"])
    model, x = tiny_model(), blurry()
    assert torch.equal(
        restore(model, x, "mine", 2, generator=seeded()), restore(model, x, "ddim", 2, generator=seeded())
    )

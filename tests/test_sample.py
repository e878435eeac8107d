import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from tinymsg import sample
from tinymsg.data import check_images
from tinymsg.model import PREDICTIONS, save_model
from tinymsg.sample import SAMPLERS, Setting, ddim, draw_samples, get_sampler, prepare, restore, restore_steps
from tinymsg.schedule import SCHEDULES, Schedule, linear, make_schedule, max_noise_for, q_sample


def seeded(seed: int = 0, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def half(y_t, noise_level):
    """A denoiser for where any will do."""
    return 0.5 * y_t


# --- the contract, over all samplers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", SCHEDULES)
@pytest.mark.parametrize("steps, max_noise", [(1, 0.9), (2, 0.5), (10, 0.5), (60, 0.3), (40, 0.99)])
def test_a_perfect_denoiser_gives_y0_back(name, grid, steps, max_noise, images, device):
    y0 = images()[0].to(device)
    y_T = torch.randn(y0.shape, generator=seeded(1)).to(device)
    chain = get_sampler(name)(lambda y_t, level: y0, make_schedule(grid, steps, max_noise), y_T, seeded(2, device))
    seen = list(chain)
    assert [t for t, _, _ in seen] == list(range(steps - 1, -1, -1))
    assert all(y_t.shape == y0_hat.shape == y0.shape for _, y_t, y0_hat in seen)
    torch.testing.assert_close(seen[-1][1], y0, rtol=0, atol=1e-5)  # no noise is left on it


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_tell_the_network_each_level_once(name):
    schedule = linear(7, 0.5)
    levels = []

    def denoise(y_t, noise_level):
        levels.append(noise_level)
        return torch.zeros_like(y_t)

    list(SAMPLERS[name](denoise, schedule, torch.zeros(2, 1, 2, 2), seeded()))
    expected = schedule.noise_level[1:].flip(0).float()
    torch.testing.assert_close(torch.stack(levels), expected[:, None].expand(7, 2))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_repeat_with_their_generator(name, images):
    def run(seed: int) -> torch.Tensor:
        return list(SAMPLERS[name](half, linear(6, 0.5), images()[1], seeded(seed)))[-2][1]

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1), run(2)) == (name != "ancestral")  # the others are deterministic


def test_unknown_sampler_lists_the_known():
    with pytest.raises(ValueError, match="dice.*" + ", ".join(SAMPLERS)):
        get_sampler("dice")


# --- what each sampler is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", SCHEDULES)
def test_ddim_with_eta_one_is_ancestral(grid):
    schedule = make_schedule(grid, 12, 0.5)
    y_T = torch.randn(2, 3, 4, 4, generator=seeded(), dtype=torch.float64)

    def denoise(y_t, noise_level):
        return torch.tanh(y_t) * noise_level[:, None, None, None]

    ancestral = list(SAMPLERS["ancestral"](denoise, schedule, y_T, seeded(3)))
    as_ddim = list(ddim(denoise, schedule, y_T, seeded(3), eta=1.0))
    for (_, y, y0_hat), (_, y_2, y0_hat_2) in zip(ancestral, as_ddim, strict=True):
        torch.testing.assert_close(y, y_2, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(y0_hat, y0_hat_2, rtol=1e-6, atol=1e-8)


def test_ddim_scales_the_posteriors_deviation_by_eta():
    schedule = linear(5, 0.5)
    still = torch.zeros(1, 1, 200, 200)
    _, y, _ = next(ddim(lambda y_t, level: still, schedule, still, seeded(), eta=0.5))
    _, variance = schedule.posterior(5, still, still)
    assert abs(y.var().item() / (0.25 * variance) - 1) < 0.04


# --- data whose best denoiser is known ----------------------------------------------------------------------------

MEAN, SD = 0.6, 0.3


def gaussian(y_t, noise_level):
    """E[y0 | y_t] for y0 ~ N(MEAN, SD^2)."""
    a2 = noise_level.double()[:, None, None, None] ** 2
    return MEAN + torch.sqrt(a2) * SD**2 * (y_t - torch.sqrt(a2) * MEAN) / (a2 * SD**2 + 1 - a2)


def two_points(y_t, noise_level):
    """E[y0 | y_t] for y0 = MEAN or -MEAN, equally likely."""
    a = noise_level.double()[:, None, None, None]
    return MEAN * torch.tanh(a * MEAN * y_t / (1 - a**2))


DENOISERS = {"gaussian": gaussian, "two_points": two_points}
Y_T = torch.linspace(-2.5, 2.5, 102, dtype=torch.float64)[None, None, None]  # none at zero, between the two points


def even_in_log_snr(steps: int) -> Schedule:
    """`steps` intervals of equal length in lambda, and a last one to zero noise."""
    lambda_t = torch.linspace(4, -4, steps + 1, dtype=torch.float64)
    return Schedule(torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(2 * lambda_t)]))


def flow_error(name: str, steps: int) -> float:
    """Largest error before the last, first-order step. The exact probability flow (Song 2021, Sec. 4.3) keeps the
    standardised value of a Gaussian."""
    schedule = even_in_log_snr(steps)
    start, end = float(schedule.alpha_bar[-1]), float(schedule.alpha_bar[1])
    standardised = (Y_T - math.sqrt(start) * MEAN) / math.sqrt(start * SD**2 + 1 - start)
    expected = math.sqrt(end) * MEAN + math.sqrt(end * SD**2 + 1 - end) * standardised
    t, y, _ = list(SAMPLERS[name](gaussian, schedule, Y_T))[-2]
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
    y = list(SAMPLERS[name](gaussian, linear(1024, 0.02), y_T, seeded(1)))[-1][1]
    assert abs(y.mean() - MEAN) < 5 * SD / 100
    assert abs(y.std() / SD - 1) < 0.03


# --- few steps: no evaluation is wasted ---------------------------------------------------------------------------

GRAY_LEVEL = 2 / 255  # of 8 bits, in [-1, 1]


def answers(name: str, schedule: Schedule, denoise=gaussian) -> torch.Tensor:
    """What each evaluation says, (T, w), and last what comes out."""
    steps = list(SAMPLERS[name](denoise, schedule, Y_T, seeded(1)))
    return torch.stack([y0_hat for _, _, y0_hat in steps] + [steps[-1][1]]).flatten(1)


def least_change(name: str, schedule: Schedule, denoise=gaussian) -> float:
    """The least that an evaluation moves the answer of the one before, on the mean."""
    return float(answers(name, schedule, denoise)[:-1].diff(dim=0).abs().mean(dim=1).min())


@pytest.mark.parametrize("denoise", DENOISERS.values(), ids=DENOISERS)
@pytest.mark.parametrize("max_noise", [0.9, 0.99])
@pytest.mark.parametrize("grid", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_evaluation_changes_the_picture(name, grid, max_noise, denoise):
    """Also the last one, and visibly while there are few; and what comes out is what the last one says."""
    for steps in (2, 3, 5):
        assert least_change(name, make_schedule(grid, steps, max_noise), denoise) > GRAY_LEVEL
    if denoise is gaussian:  # the other has arrived at its points before
        for steps in (10, 20):
            assert least_change(name, make_schedule(grid, steps, max_noise)) > 1e-5
    out = answers(name, make_schedule(grid, 5, max_noise), denoise)
    torch.testing.assert_close(out[-1], out[-2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_noise", [0.9, 0.99])
@pytest.mark.parametrize("grid", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_two_steps_differ_from_one(name, grid, max_noise):
    one, two = (answers(name, make_schedule(grid, steps, max_noise))[-1] for steps in (1, 2))
    assert (one - two).abs().mean() > 5 * GRAY_LEVEL


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_grid_that_wastes_its_last_evaluation_is_found_out(name):
    """DvSR's beta_1 of 1e-6 in a short chain: guards the two tests above."""
    one, two = (linear(steps, 0.9, min_noise=1e-6) for steps in (1, 2))
    assert least_change(name, two) < GRAY_LEVEL / 2
    assert (answers(name, one)[-1] - answers(name, two)[-1]).abs().mean() < GRAY_LEVEL / 2


FROM_NOISE = {  # chains that begin at noise, so that however many steps there are the answer is the same
    "linear": lambda steps: linear(steps, max_noise_for(steps, 1e-3)),
    "cosine": lambda steps: make_schedule("cosine", steps, 0.999),
}


@cache
def errors(name: str, grid: str, data: str) -> list[float]:
    """Mean distance of 4, 8, 16, 32 steps' samples from those of 1,000 steps."""
    reference = answers(name, FROM_NOISE[grid](1000), DENOISERS[data])[-1]
    few = (answers(name, FROM_NOISE[grid](steps), DENOISERS[data])[-1] for steps in (4, 8, 16, 32))
    return [float((out - reference).abs().mean()) for out in few]


def test_every_grid_is_looked_at():
    assert set(FROM_NOISE) == set(SCHEDULES)


@pytest.mark.parametrize("data", DENOISERS)
@pytest.mark.parametrize("grid", FROM_NOISE)
def test_more_steps_come_nearer_and_dpm_solver_sooner(grid, data):
    ddim_errors, dpm_errors = errors("ddim", grid, data), errors("dpm_solver", grid, data)
    for found in (ddim_errors, dpm_errors):
        assert all(later < 0.8 * before or later < 1e-9 for before, later in zip(found, found[1:], strict=False)), found
    assert all(second < first for first, second in list(zip(ddim_errors, dpm_errors, strict=True))[1:3])
    assert dpm_errors[-1] < 0.5 * ddim_errors[-1] + 1e-9


@pytest.mark.parametrize("grid", FROM_NOISE)
@pytest.mark.parametrize("name", SAMPLERS)
def test_more_steps_come_nearer_to_the_spread_of_the_data(name, grid):
    """Few make samples too much alike; for samplers that draw, whose samples cannot be compared one by one."""
    y_T = torch.randn(1, 1, 100, 100, generator=seeded(), dtype=torch.float64)
    y_T /= y_T.std()
    chains = (SAMPLERS[name](gaussian, FROM_NOISE[grid](steps), y_T, seeded(1)) for steps in (1, 2, 4, 8, 16))
    missing = [SD - float(list(chain)[-1][1].std()) for chain in chains]
    assert missing[0] > 0.9 * SD
    assert all(abs(later) < 0.85 * before for before, later in zip(missing, missing[1:], strict=False)), missing


# --- restore ----------------------------------------------------------------------------------------------------


def blurry(b: int = 1, c: int = 3, h: int = 16, w: int = 16) -> torch.Tensor:
    return torch.rand(b, c, h, w, generator=seeded(7)) * 2 - 1


@pytest.mark.parametrize("h, w", [(16, 16), (1, 1), (7, 5), (9, 24), (33, 2)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_size_comes_back(tiny_model, device, h, w, name):
    x = blurry(2, 3, h, w).to(device)
    output = restore(tiny_model().to(device), x, Setting(name, steps=2), seeded(0, device))
    assert output.shape == x.shape and output.dtype == torch.float32 and output.device == x.device
    assert torch.isfinite(output).all() and output.min() >= -1 and output.max() <= 1
    assert not output.is_inference() and not output.requires_grad


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("grid", SCHEDULES)
def test_any_prediction_and_grid(tiny_model, predict, residual, grid):
    model = tiny_model(predict=predict, residual=residual)
    for steps, max_noise in ((1, 0.01), (3, 0.99), (10, 0.9)):
        output = restore(model, blurry(h=8, w=8), Setting(steps=steps, max_noise=max_noise, grid=grid), seeded())
        assert torch.isfinite(output).all() and output.abs().max() <= 1


@pytest.mark.parametrize("steps", [300, 1000])
@pytest.mark.parametrize("name", SAMPLERS)
def test_so_much_noise_that_alpha_bar_vanishes(tiny_model, name, steps):
    """Below what float32 holds, there is a picture or a sentence: never a picture of NaN."""
    try:
        output = restore(tiny_model(widths=(16,), scales=()), blurry(h=8, w=8), Setting(name, steps, 0.99), seeded())
    except ValueError as error:
        assert "noise" in str(error)
    else:
        assert torch.isfinite(output).all()


def test_signals(tiny_model):
    model = tiny_model(dims=1, channels=1)
    x = blurry(2, 1, 1, 45)
    assert restore(model, x, Setting(steps=2), seeded()).shape == x.shape


def test_seeds_repeat_and_matter(tiny_model):
    model, x = tiny_model(), blurry()
    first, again, other = (restore(model, x, Setting(steps=3), seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and (first - other).abs().mean() > 1e-4
    before = x.clone()
    restore(model, x)
    assert torch.equal(x, before)


def test_a_perfect_model_restores_the_picture(tiny_model, monkeypatch):
    """The whole path, with the network's output put in its place: padding, sampler, decoding, cropping."""
    model = tiny_model(predict="x0", residual=True)
    y0, x = blurry(2, 3, 11, 13), blurry(2, 3, 11, 13).flip(0)
    wanted = 2 * (F.pad(y0, (0, 3, 0, 5), mode="reflect") - F.pad(x, (0, 3, 0, 5), mode="reflect"))
    monkeypatch.setattr(model.unet, "forward", lambda z_t, x, level, features: wanted)
    for name in SAMPLERS:
        torch.testing.assert_close(restore(model, x, Setting(name, steps=4), seeded()), y0, rtol=0, atol=1e-5)


def test_samples_are_averaged(tiny_model):
    model, x = tiny_model(), blurry()
    generator = seeded(4)
    single = [restore(model, x, Setting(steps=2), generator) for _ in range(3)]
    mean = restore(model, x, Setting(steps=2, samples=3), seeded(4))
    torch.testing.assert_close(mean, torch.stack(single).mean(dim=0), rtol=0, atol=1e-5)
    drawn = list(draw_samples(model, x, Setting(steps=2, samples=3), seeded(4)))
    assert len(drawn) == 3 and all(torch.equal(a, b) for a, b in zip(drawn, single, strict=True))


def count_calls(module: torch.nn.Module) -> list:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_guidance_runs_once_and_the_network_once_a_step(tiny_model):
    model = tiny_model()
    guidance, unet = count_calls(model.guidance), count_calls(model.unet)
    progress = []
    restore(model, blurry(), Setting(steps=4, samples=3), progress=lambda done, total: progress.append((done, total)))
    assert len(guidance) == 1 and len(unet) == 12
    assert progress == [(i, 12) for i in range(1, 13)]


def test_regression_takes_one_step_and_no_noise(tiny_model):
    model = tiny_model(kind="regression", scales=())
    unet = count_calls(model.unet)
    progress = []
    x = blurry()
    first = restore(model, x, Setting(steps=9, samples=5), seeded(1), progress=lambda *p: progress.append(p))
    assert len(unet) == 1 and progress == [(1, 1)]
    torch.testing.assert_close(restore(model, x, generator=seeded(2)), first, rtol=0, atol=1e-4)
    with torch.no_grad():
        direct = model.decode(model(torch.zeros_like(x), x, torch.zeros(1))[0], x)
    torch.testing.assert_close(first, direct, rtol=0, atol=1e-4)


def test_restore_is_the_last_of_its_steps(tiny_model):
    model, x = tiny_model(), blurry(1, 3, 9, 10)
    steps = list(restore_steps(model, x, Setting(), seeded(1)))
    assert [t for t, _, _ in steps] == [4, 3, 2, 1, 0]
    assert all(z.shape == y0_hat.shape == x.shape for _, z, y0_hat in steps)
    assert torch.equal(steps[-1][2], restore(model, x, generator=seeded(1)))
    prepared = prepare(model, x)
    again = list(restore_steps(model, x, Setting(), seeded(1), prepared))
    assert torch.equal(again[-1][2], steps[-1][2])
    assert torch.equal(restore(model, x, generator=seeded(1), prepared=prepared), steps[-1][2])


def test_nothing_leaks_between_the_steps(tiny_model):
    """Inference mode and autocast hold within a step alone, also when the caller stops half way."""
    model = tiny_model(precision="bf16")
    for _ in restore_steps(model, blurry(), Setting(steps=3), seeded()):
        assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
        break
    assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")


def test_training_mode_does_not_matter_and_is_left_alone(tiny_model):
    model, x = tiny_model(), blurry()
    expected = restore(model, x, Setting(steps=2), seeded())
    model.train()
    assert torch.equal(restore(model, x, Setting(steps=2), seeded()), expected) and model.training


def test_half_precision_pictures(tiny_model):
    x = blurry().half()
    output = restore(tiny_model(), x, Setting(steps=2), seeded())
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, restore(tiny_model(), x.float(), Setting(steps=2), seeded()))


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(3, 8, 8), r"shape \(b, 3, h, w\), got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), r"got \(1, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.zeros(1, 3, 0, 8), "empty"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point.*uint8"),
        (torch.full((1, 3, 8, 8), 1.2), r"\[-1, 1\].* 1.2"),
        (torch.full((1, 3, 8, 8), 255.0), r"\[-1, 1\]"),
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
        ({"sampler": "dice"}, "ancestral"),
        ({"grid": "sigmoid"}, "linear"),
        ({"steps": 0}, "steps .* 1"),
        ({"max_noise": 1.0}, r"\(0, 1\)"),
        ({"max_noise": 0.0}, r"\(0, 1\)"),
        ({"samples": 0}, "samples .* 1"),
    ],
)
def test_wrong_settings_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Setting(**arguments)


@pytest.mark.parametrize("alpha_bar_T", [0.5, 0.99])
def test_a_start_is_noised_up_to_where_the_chain_begins(tiny_model, monkeypatch, alpha_bar_T):
    """CCDF (Chung 2022, Alg. 1): the first picture that the network sees is q_sample of the estimate."""
    model, x, start = tiny_model(residual=False), blurry(2, 3, 16, 16), blurry(2, 3, 16, 16).flip(2)
    setting = Setting(steps=3, max_noise=max_noise_for(3, alpha_bar_T))
    seen, forward = [], model.unet.forward
    monkeypatch.setattr(model.unet, "forward", lambda z, *rest: seen.append(z.clone()) or forward(z, *rest))
    restore(model, x, setting, seeded(3), start=start)
    level = torch.full((2,), alpha_bar_T**0.5)
    expected = q_sample(start, level, torch.randn(x.shape, generator=seeded(3)))
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_a_setting_may_begin_at_a_regressions_answer(tiny_model, tmp_path):
    """Every sample does, the regression runs once, and a regression itself needs no start."""
    first, second, x = tiny_model(kind="regression", scales=()), tiny_model(), blurry(1, 3, 16, 16)
    save_model(first, tmp_path / "first.safetensors")
    setting = Setting(steps=2, max_noise=0.3, samples=2, start=str(tmp_path / "first.safetensors"))
    by_hand = restore(second, x, replace(setting, start=None), seeded(1), start=restore(first, x))
    torch.testing.assert_close(restore(second, x, setting, seeded(1)), by_hand, rtol=0, atol=2e-3)  # weights in float16
    assert not torch.allclose(by_hand, restore(second, x, replace(setting, start=None), seeded(1)), atol=2e-3)
    assert torch.equal(restore(first, x, setting), restore(first, x))
    *_, (_, _, last) = restore_steps(second, x, setting, seeded(1))
    assert torch.equal(last, next(draw_samples(second, x, setting, seeded(1))))


def test_a_start_that_cannot_be_says_so(tiny_model):
    x = blurry()
    with pytest.raises(ValueError, match="start.*shape"):
        restore(tiny_model(), x, start=x[..., :8])
    with pytest.raises(ValueError, match="start.*diffusion"):
        restore(tiny_model(kind="regression", scales=()), x, start=x)


def test_a_new_sampler_needs_only_the_registry(tiny_model, monkeypatch):
    monkeypatch.setitem(sample.SAMPLERS, "mine", SAMPLERS["ddim"])
    model, x = tiny_model(), blurry()
    mine, theirs = (restore(model, x, Setting(name, steps=2), seeded()) for name in ("mine", "ddim"))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("residual", [True, False])
def test_a_perfect_denoiser_arrives_from_any_start(tiny_model, images, monkeypatch, sampler, residual):
    model = tiny_model(residual=residual)
    y0, x = (image.clamp(-0.9, 0.9) for image in images())
    monkeypatch.setattr(model, "denoiser", lambda blurry: lambda z_t, noise_level: model.encode(y0, x))
    generator = torch.Generator().manual_seed(0)
    out = restore(model, x, Setting(sampler, 4, 0.5), generator, start=x)
    torch.testing.assert_close(out, y0, atol=1e-6, rtol=0)


def test_a_start_with_little_noise_stays_near_it(tiny_model, images, monkeypatch):
    """A denoiser that takes what it is given for the image leaves the start as it is, but for the noise put on it."""
    model = tiny_model(residual=False)
    start, x = (0.5 * image for image in images())
    monkeypatch.setattr(model, "denoiser", lambda x: lambda z_t, noise_level: z_t / noise_level[:, None, None, None])
    far = []
    for alpha_bar_T in (0.9999, 0.9):
        setting = Setting("ddim", 1, max_noise_for(1, alpha_bar_T))
        out = restore(model, x, setting, torch.Generator().manual_seed(0), start=start)
        far.append(float((out - start).std()))
    assert far[0] < 0.02 < far[1]

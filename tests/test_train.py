import contextlib
import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import no_waiting

from tinymsg.cli import main
from tinymsg.data import Batches, SyntheticPairs, scene_contents
from tinymsg.guidance import structure_targets
from tinymsg.model import PREDICTIONS, Model
from tinymsg.schedule import q_sample
from tinymsg.train import NotFiniteError, TrainState, fit, loss_terms
from tinymsg.training.checkpoint import load_state, state_dict
from tinymsg.training.parallel import training_network

LEVEL = torch.tensor([0.3, 0.8])


@pytest.fixture
def batches():
    """A function of the step, as `fit` wants it."""
    return Batches(SyntheticPairs(scene_contents(8), "gopro_like"), batch=2, size=16)


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, module in (("model", state.model), ("ema", state.ema_model))
        for name, value in module.state_dict().items()
    }


# --- the loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss, distance", [("l1", F.l1_loss), ("l2", F.mse_loss)])
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("target", ["gray", "rgb"])
def test_loss_closed_form(tiny_model, images, loss, distance, predict, target):
    model = tiny_model(predict=predict, target=target, scales=(1, 3))
    y0, x = images()
    eps = torch.randn(y0.shape, generator=torch.Generator().manual_seed(1))
    denoise, structure = loss_terms(model, y0, x, LEVEL, eps, loss)
    z0 = 2 * (y0 - x)
    column = LEVEL[:, None, None, None]
    z_t = column * z0 + torch.sqrt(1 - column**2) * eps
    wanted = {"eps": eps, "x0": z0, "v": column * eps - torch.sqrt(1 - column**2) * z0}[predict]
    output, predictions = model(z_t, x, LEVEL)
    torch.testing.assert_close(denoise, distance(output, wanted))
    expected = sum(F.mse_loss(p, t) for p, t in zip(predictions, structure_targets(y0, (1, 3), target), strict=True))
    torch.testing.assert_close(structure, expected)
    assert structure > 0 and denoise > 0


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_perfect_network_has_no_loss(tiny_recipe, images, predict):
    """Guards the wanted value: a network that knows y0 and eps loses nothing."""
    y0, x = images()
    eps = torch.randn_like(y0)
    core = Model(tiny_recipe(predict=predict, residual=False).network)

    class Perfect(torch.nn.Module):
        def forward(self, z_t, x_seen, noise_level):
            assert torch.equal(z_t, q_sample(y0, LEVEL, eps)) and torch.equal(x_seen, x)
            return core.target(y0, eps, noise_level), tuple(structure_targets(y0, core.guidance.scales))

    assert loss_terms(core, y0, x, LEVEL, eps, network=Perfect()) == (0, 0)


def test_regression_ignores_noise(tiny_model, images):
    model = tiny_model(kind="regression", scales=())
    y0, x = images()
    first = loss_terms(model, y0, x, LEVEL, torch.randn_like(y0), "l2")
    second = loss_terms(model, y0, x, LEVEL / 2, torch.randn_like(y0), "l2")
    assert torch.equal(first[0], second[0]) and first[1] == 0
    output, _ = model(torch.zeros_like(x), x, torch.zeros(2))
    torch.testing.assert_close(first[0], F.mse_loss(output, 2 * (y0 - x)))


# --- fit --------------------------------------------------------------------------------------------------------


def test_fit_yields_after_each_step(tiny_recipe, batches):
    state = TrainState(tiny_recipe())
    before = tensors(state)
    for number, record in enumerate(fit(state, batches), start=1):
        assert record.step == state.step == number
        after = tensors(state)
        assert not torch.equal(before["model.unet.conv_out.weight"], after["model.unet.conv_out.weight"])
        before = after
        numbers = record.to_dict()
        assert set(numbers) == {"step", "denoise", "guidance", "grad_norm", "grad_norm_guidance", "lr"}
        assert all(math.isfinite(value) for value in numbers.values()) and numbers["step"] == number
        assert not record.denoise.requires_grad
    assert number == 6
    assert list(fit(state, batches)) == []  # done is done


def test_fit_for_fewer_steps(tiny_recipe, batches):
    state = TrainState(tiny_recipe())
    records = list(fit(state, batches, 2))
    assert len(records) == 2
    whole = list(fit(TrainState(tiny_recipe()), batches))
    assert [r.to_dict() for r in records] == [r.to_dict() for r in whole[:2]]  # same rate, same noise
    assert [r.to_dict() for r in fit(state, batches)] == [r.to_dict() for r in whole[2:]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scales": ()},
        {"predict": "eps", "residual": False},
        {"predict": "v"},
        {"kind": "regression", "scales": ()},
        {"precision": "bf16"},
    ],
)
def test_the_loss_falls_on_one_batch(tiny_recipe, batches, device, changes):
    one = tuple(image.to(device) for image in batches(0))
    recipe = tiny_recipe(steps=60, lr=3e-3, warmup=5, **changes)
    records = [r.to_dict() for r in fit(TrainState(recipe, device), lambda step: one)]
    losses = [r["denoise"] for r in records]
    assert sum(losses[-15:]) < 0.85 * sum(losses[:15])
    if recipe.network.scales:
        assert records[-1]["guidance"] < 0.9 * records[0]["guidance"]
    else:
        assert all(r["guidance"] == r["grad_norm_guidance"] == 0 for r in records)


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": 1, "channels": 1, "widths": (16, 16), "scales": (1,)},
        {"stop_gradient": True},
        {"target": "none"},
        {"how": "both", "inject": "structure"},
    ],
)
def test_every_kind_of_network_trains(tiny_recipe, changes):
    recipe = tiny_recipe(steps=2, **changes)
    shape = (2, recipe.network.channels, 1 if recipe.network.dims == 1 else 16, 16)
    batch = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    records = [r.to_dict() for r in fit(TrainState(recipe), lambda step: (batch, 0.5 * batch))]
    assert all(math.isfinite(record["denoise"]) for record in records)


def test_noise_is_drawn_anew_each_step_and_from_the_seed(tiny_recipe):
    def drawn(step: int, seed: int, share: tuple[int, int] = (0, 1), size: int = 4):
        state = TrainState(tiny_recipe(seed=seed))
        state.step, state.share = step, share
        return state.noise(torch.zeros(size, 3, 16, 16))

    first, again, later, other = (drawn(*at) for at in ((0, 0), (0, 0), (1, 0), (0, 1)))
    for part in range(2):
        assert torch.equal(first[part], again[part])
        assert not torch.equal(first[part], later[part]) and not torch.equal(first[part], other[part])
    assert abs(torch.cat([first[1], later[1], other[1]]).std() - 1) < 0.05
    for part in range(2):  # two processes together draw what one would have
        halves = [drawn(0, 0, (rank, 2), size=2)[part] for rank in range(2)]
        assert all(torch.equal(halves[rank], first[part][rank::2]) for rank in range(2))


def test_the_levels_are_those_of_the_recipe(tiny_recipe):
    state = TrainState(tiny_recipe(noise_steps=30, noise_max=0.5))
    assert state.schedule.T == 30 and float(state.schedule.beta[-1]) == pytest.approx(0.5)
    default = TrainState(tiny_recipe()).schedule
    assert default.T == 2000 and float(default.alpha_bar[-1]) == pytest.approx(4.5e-5, rel=0.15)
    assert float(default.beta[1]) < 1e-5  # the network sees levels up to the clean picture


def test_learning_rate(tiny_recipe, batches):
    state = TrainState(tiny_recipe(steps=20, warmup=4, lr=1e-3))
    rates = [record.lr for record in fit(state, batches)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:] == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * i / 16)) for i in range(16)])
    state.step = 20
    assert state.learning_rate() == pytest.approx(0)
    assert TrainState(tiny_recipe(warmup=0, lr=1e-3)).learning_rate() == 1e-3


def test_first_adamw_step_closed_form(tiny_recipe, batches):
    """Bias-corrected Adam moves each weight by the rate, whatever its gradient; decay is apart from it."""
    state = TrainState(tiny_recipe(warmup=0, lr=1e-3, weight_decay=0.5, steps=1, scales=()))
    before = state.model.unet.conv_out.bias.detach().clone(), state.model.unet.conv_in.weight.detach().clone()
    list(fit(state, batches))
    after = state.model.unet.conv_out.bias.detach(), state.model.unet.conv_in.weight.detach()
    torch.testing.assert_close((after[0] - before[0]).abs(), torch.full((3,), 1e-3), rtol=1e-3, atol=0)
    # conv_out is zero at first: nothing behind it has a gradient yet, and decay alone moves those weights
    torch.testing.assert_close(after[1], before[1] * (1 - 1e-3 * 0.5))


def test_ema_closed_form(tiny_recipe, batches):
    """The average starts as the first step's weights; afterwards ema = decay ema + (1 - decay) weights."""
    state = TrainState(tiny_recipe(ema=0.75))
    expected = None
    for _ in fit(state, batches):
        weights = state.model.unet.conv_out.weight.detach().clone()
        expected = weights if expected is None else 0.75 * expected + 0.25 * weights
        torch.testing.assert_close(state.ema_model.unet.conv_out.weight, expected)
    assert not torch.equal(state.ema_model.unet.conv_out.weight, weights)
    assert not state.ema_model.training and state.model.training


def test_the_two_gradients_are_clipped_apart(tiny_recipe, batches, monkeypatch):
    state = TrainState(tiny_recipe(clip=1e-3, clip_guidance=1e-2, guidance_weight=1e4, steps=1))
    norms = {}

    def step(*_, **__):
        for name, part in (("unet", state.model.unet), ("guidance", state.model.guidance)):
            norms[name] = math.sqrt(sum(float(p.grad.square().sum()) for p in part.parameters() if p.grad is not None))

    monkeypatch.setattr(state.optimizer, "step", step)
    (record,) = fit(state, batches)
    assert norms == pytest.approx({"unet": 1e-3, "guidance": 1e-2}, rel=1e-3)
    assert record.grad_norm_guidance > 100 and 1e-3 < record.grad_norm < 100  # reported as they were


def test_guidance_weight_scales_its_loss(tiny_recipe, batches):
    gradients = {}
    for weight in (0.0, 1.0, 10.0):
        (record,) = fit(TrainState(tiny_recipe(guidance_weight=weight, steps=1, clip_guidance=1e9)), batches)
        gradients[weight] = float(record.grad_norm_guidance)
    assert gradients[0.0] == 0 and gradients[10.0] == pytest.approx(10 * gradients[1.0], rel=1e-3)


def test_loss_that_is_not_finite_stops_with_a_message(tiny_recipe, batches):
    def poisoned(step):
        y0, x = batches(step)
        return (y0 * math.nan if step == 2 else y0), x

    state = TrainState(tiny_recipe())
    records = fit(state, poisoned)
    assert [next(records).step, next(records).step] == [1, 2]
    with pytest.raises(NotFiniteError, match="step 3.*lower lr"):
        next(records)


def test_weights_stay_fp32_and_channels_last(tiny_recipe, batches):
    state = TrainState(tiny_recipe(precision="bf16", steps=2))
    list(fit(state, batches))
    assert state.bf16 and all(p.dtype == torch.float32 for p in state.model.parameters())
    assert state.model.unet.down[0][0].conv_1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("crop", [64, 96])
def test_the_layout_changes_the_speed_and_nothing_else(tiny_recipe, crop):
    """Large crops in fp32 on a CPU train in the ordinary layout, weights and what the network sees; the losses are the
    same."""
    recipe = tiny_recipe(precision="fp32", crop=crop, batch=2, steps=2)
    pairs = SyntheticPairs(scene_contents(4, size=crop), "gopro_like")
    state, seen = TrainState(recipe), []
    state.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    losses = [r.to_dict() for r in fit(state, Batches(pairs, 2, crop))]
    assert seen == [crop == 96] * 2
    assert state.model.unet.down[0][0].conv_1.weight.is_contiguous() == (crop == 96)
    other = TrainState(recipe)
    other.layout = torch.channels_last
    other.model.to(memory_format=torch.channels_last)
    for one, wanted in zip(fit(other, Batches(pairs, 2, crop)), losses, strict=True):
        assert one.to_dict() == pytest.approx(wanted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "changes, layout",
    [
        ({"crop": 128}, torch.contiguous_format),
        ({"crop": 88}, torch.channels_last),
        ({"crop": 128, "precision": "bf16"}, torch.channels_last),
        ({"crop": 128, "dims": 1, "channels": 1}, torch.channels_last),
    ],
)
def test_layout(tiny_recipe, changes, layout):
    assert TrainState(tiny_recipe(**changes)).layout is layout


def test_a_checkpoint_goes_on_in_the_layout_of_its_new_number_type(tiny_recipe):
    """The fused optimiser reads weights and moments as they lie: those of another layout would meet other weights."""
    pairs = SyntheticPairs(scene_contents(4, size=96), "gopro_like")
    before = TrainState(tiny_recipe(crop=96, steps=4))
    list(fit(before, Batches(pairs, 2, 96), 2))
    saved = copy.deepcopy(state_dict(before))
    expected = [r.to_dict() for r in fit(before, Batches(pairs, 2, 96))]
    state = TrainState(tiny_recipe(crop=96, steps=4, precision="bf16"))
    load_state(state, saved, accept_changes=True)
    assert (before.layout, state.layout) == (torch.contiguous_format, torch.channels_last)
    for average, weight in zip(state.ema_model.parameters(), state.model.parameters(), strict=True):
        moments = state.optimizer.state[weight]
        assert weight.stride() == moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == average.stride()
    for number, moments in enumerate(state.optimizer.state.values()):
        assert torch.equal(moments["exp_avg"], saved["optimizer"]["state"][number]["exp_avg"])
    for one, other in zip(fit(state, Batches(pairs, 2, 96)), expected, strict=True):
        assert one.to_dict() == pytest.approx(other, rel=0.03, abs=1e-5)
    for one, other in zip(state.model.parameters(), before.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)


@pytest.mark.parametrize("accumulate, changes", [(2, {}), (4, {"scales": ()}), (4, {"precision": "bf16"})])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_recipe, accumulate, device, changes):
    """Losses, gradient norms and weights agree: noise and data do not depend on the number of micro-batches."""
    pairs = SyntheticPairs(scene_contents(8), "gopro_like", device=device)
    whole, parts = (TrainState(tiny_recipe(batch=4, accumulate=n, steps=3, **changes), device) for n in (1, accumulate))
    rows, pieces = ([r.to_dict() for r in fit(state, Batches(pairs, 4, 16))] for state in (whole, parts))
    tolerance = 0.03 if changes.get("precision") == "bf16" else 1e-3
    for one, other in zip(rows, pieces, strict=True):
        assert other == pytest.approx(one, rel=tolerance, abs=1e-6)
    if tolerance == 1e-3:
        for name, value in tensors(whole).items():
            torch.testing.assert_close(tensors(parts)[name], value, rtol=0, atol=2e-4)


def test_micro_batches_are_seen_one_by_one(tiny_recipe, batches):
    """No more than a micro-batch is ever in the network: that is what saves the memory."""
    state, sizes = TrainState(tiny_recipe(batch=4, accumulate=4, steps=2)), []
    state.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    list(fit(state, Batches(batches.pairs, 4, 16)))
    assert sizes == [1] * 8


# --- compiled -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked_shapes")
def test_compiled_training_learns_the_same(tiny_recipe, batches, monkeypatch):
    """By a backend that needs no C compiler: the graph is whole, micro-batches and all, and is compiled once."""
    compiled, real = [], torch.compile

    def stand_in(model, mode, **options):
        compiled.append((mode, options))
        return real(model, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", stand_in)
    rows = []
    for mode in ("", "default"):
        state = TrainState(tiny_recipe(compile=mode, accumulate=2, steps=2))
        rows.append([r.to_dict() for r in fit(state, batches, network=training_network(state))])
    assert compiled == [("default", {"fullgraph": True, "dynamic": False})]
    for one, other in zip(*rows, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.usefixtures("unchecked_shapes")
def test_compiled_trainings_follow_each_other(tiny_recipe, monkeypatch):
    """More than torch keeps compiled forms, at other sizes; the averaged weights, looked at meanwhile, are not
    compiled."""
    real, graphs = torch.compile, []
    monkeypatch.setattr(
        torch, "compile", lambda model, mode, **o: real(model, backend=lambda g, _: graphs.append(g) or g.forward, **o)
    )
    for crop, widths in ((16, (16, 16)), (32, (16, 16)), (16, (16, 32))):
        image = torch.zeros(2, 3, crop, crop)
        state = TrainState(tiny_recipe(crop=crop, widths=widths, scales=(1,), compile="default", steps=2))
        with torch._dynamo.config.patch(recompile_limit=1):
            for _ in fit(state, lambda step, image=image: (image, image), network=training_network(state)):
                with torch.no_grad():
                    state.ema_model(*[torch.zeros(1, 3, 48, 64)] * 2, torch.full((1,), 0.5))
    assert len(graphs) == 3


def test_without_a_compiler_the_command_says_so_in_one_sentence(tmp_path, capsys, monkeypatch):
    def backend(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable\nand more lines")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=backend, **options))
    settings = [
        "widths=16,16",
        "scales=1",
        "crop=16",
        "batch=2",
        "content_count=4",
        "precision=fp32",
        "compile=default",
    ]
    assert main(["train", "--out", str(tmp_path / "out"), "--device", "cpu", "--set", *settings]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tinymsg:")]
    assert "C compiler" in said and "--set compile=" in said and "more lines" not in said


@pytest.mark.parametrize(("gpus", "instead"), [(2, "torchrun --nproc-per-node 2"), (0, "--device cpu")])
@pytest.mark.parametrize("started", [{"LOCAL_RANK": "2"}, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}])
def test_more_processes_than_gpus_is_one_sentence_of_each(tmp_path, capsys, monkeypatch, started, gpus, instead):
    """Said before any of them has touched a GPU, which is not its own."""
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    assert main(["train", "--out", str(tmp_path / "out"), "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tinymsg: ") and said.count("\n") == 1
    assert f"has {gpus}" in said and instead in said


# --- nothing waits for the GPU (nor does a stand-in, in test_machine.py) ------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"compile": "reduce-overhead"}])
def test_on_a_gpu_no_step_waits_for_it(tiny_recipe, changes):
    recipe = tiny_recipe(steps=8, **changes)
    pairs = SyntheticPairs(scene_contents(4, size=32), "all", device="cuda")
    state = TrainState(recipe, "cuda")
    steps = fit(state, Batches(pairs, 2, 16), network=training_network(state))
    for _ in range(4):
        next(steps)
    with no_waiting():
        for _ in range(3):
            next(steps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.usefixtures("unchecked_shapes")
def test_cuda_graphs_learn_what_eager_steps_do(tiny_recipe, images):
    """compile="reduce-overhead" records them; a second training of the same state goes on from where it was."""
    rows = []
    for mode in ("", "reduce-overhead"):
        state = TrainState(tiny_recipe(steps=6, compile=mode), "cuda")
        y0, x = (image.to("cuda") for image in images())
        records = []
        for steps in (3, 6):
            records += [
                r.to_dict() for r in fit(state, lambda step, y0=y0, x=x: (y0, x), steps, training_network(state))
            ]
        rows.append(records)
    for eager, recorded in zip(*rows, strict=True):
        assert recorded == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("failing", [False, True])
def test_what_forbids_waiting_is_silent_and_leaves_nothing_behind(failing, monkeypatch):
    """torch warns at the first call, once the mode is set: as an error, that would leave it set for later tests."""
    modes = []

    def set_mode(mode):
        modes.append(mode)
        if mode == "error":
            warnings.warn("a prototype", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(ZeroDivisionError) if failing else contextlib.nullcontext(), no_waiting():
        assert modes == ["error"]
        assert 1 / (not failing)
    assert modes == ["error", "default"]

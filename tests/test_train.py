import contextlib
import copy
import dataclasses
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import no_waiting
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tinymsg import train
from tinymsg.__main__ import main
from tinymsg.data import Batches, SyntheticPairs, scene_contents
from tinymsg.guidance import structure_targets
from tinymsg.model import PREDICTIONS, Model, build_model
from tinymsg.schedule import Schedule, q_sample
from tinymsg.train import NotFiniteError, TrainState, fit, loss_terms
from tinymsg.machine import use_bf16

LEVEL = torch.tensor([0.3, 0.8])


@pytest.fixture
def batches(tiny_config):
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
    model = tiny_model(loss=loss, predict=predict, target=target, scales=(1, 3))
    y0, x = images()
    eps = torch.randn(y0.shape, generator=torch.Generator().manual_seed(1))
    denoise, structure = loss_terms(model, model.config, y0, x, LEVEL, eps)
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
def test_a_perfect_network_has_no_loss(tiny_config, images, predict):
    """Guards the wanted value: a network that knows y0 and eps loses nothing."""
    y0, x = images()
    eps = torch.randn_like(y0)
    core = Model(tiny_config(predict=predict, residual=False))

    class Perfect(torch.nn.Module):
        def forward(self, z_t, x_seen, noise_level):
            assert torch.equal(z_t, q_sample(y0, LEVEL, eps)) and torch.equal(x_seen, x)
            return core.target(y0, eps, noise_level), tuple(structure_targets(y0, core.guidance.scales))

    assert loss_terms(Perfect(), core.config, y0, x, LEVEL, eps, core) == (0, 0)


def test_regression_ignores_noise(tiny_model, images):
    model = tiny_model(kind="regression", scales=(), loss="l2")
    y0, x = images()
    first = loss_terms(model, model.config, y0, x, LEVEL, torch.randn_like(y0))
    second = loss_terms(model, model.config, y0, x, LEVEL / 2, torch.randn_like(y0))
    assert torch.equal(first[0], second[0]) and first[1] == 0
    output, _ = model(torch.zeros_like(x), x, torch.zeros(2))
    torch.testing.assert_close(first[0], F.mse_loss(output, 2 * (y0 - x)))


# --- fit --------------------------------------------------------------------------------------------------------


def test_fit_yields_after_each_step(tiny_config, batches):
    state = TrainState(tiny_config())
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


def test_fit_from_a_config_and_for_fewer_steps(tiny_config, batches):
    assert len(list(fit(tiny_config(), batches))) == 6
    state = TrainState(tiny_config())
    records = list(fit(state, batches, dataclasses.replace(state.config, steps=2)))
    assert len(records) == 2
    whole = list(fit(TrainState(tiny_config()), batches))
    assert [r.to_dict() for r in records] == [r.to_dict() for r in whole[:2]]  # same rate, same noise


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
def test_the_loss_falls_on_one_batch(tiny_config, batches, device, changes):
    one = tuple(image.to(device) for image in batches(0))
    config = tiny_config(steps=60, lr=3e-3, warmup=5, **changes)
    records = [r.to_dict() for r in fit(TrainState(config, device), lambda step: one)]
    losses = [r["denoise"] for r in records]
    assert sum(losses[-15:]) < 0.85 * sum(losses[:15])
    if config.scales:
        assert records[-1]["guidance"] < 0.9 * records[0]["guidance"]
    else:
        assert all(r["guidance"] == r["grad_norm_guidance"] == 0 for r in records)


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": 1, "channels": 1, "widths": (16, 16), "scales": (1,)},
        {"stop_gradient": True},
        {"target": "none", "stop_gradient": True},
        {"dropout": 0.2},
        {"how": "both", "inject": "structure"},
    ],
)
def test_every_kind_of_network_trains(tiny_config, changes):
    config = tiny_config(steps=2, **changes)
    shape = (2, config.channels, 1 if config.dims == 1 else 16, 16)
    batch = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert all(math.isfinite(r.to_dict()["denoise"]) for r in fit(config, lambda step: (batch, 0.5 * batch)))


def test_noise_is_drawn_anew_each_step_and_from_the_seed(tiny_config, batches, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "loss_terms", lambda *a: (seen.append((a[4], a[5])), loss_terms(*a))[1])
    for seed in (0, 0, 1):
        list(fit(tiny_config(steps=2, seed=seed), batches))
    assert not torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[2][1]) and torch.equal(seen[0][0], seen[2][0])
    assert not torch.equal(seen[0][1], seen[4][1])
    assert abs(torch.cat([eps.flatten() for _, eps in seen]).std() - 1) < 0.05


def test_learning_rate(tiny_config, batches):
    config = tiny_config(steps=20, warmup=4, lr=1e-3)
    state = TrainState(config)
    rates = [record.lr for record in fit(state, batches)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:] == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * i / 16)) for i in range(16)])
    state.step = 20
    assert state.learning_rate() == pytest.approx(0)
    assert TrainState(tiny_config(warmup=0, lr=1e-3)).learning_rate() == 1e-3


def test_first_adamw_step_closed_form(tiny_config, batches):
    """Bias-corrected Adam moves each weight by the rate, whatever its gradient; decay is apart from it."""
    config = tiny_config(warmup=0, lr=1e-3, weight_decay=0.5, steps=1, scales=())
    state = TrainState(config)
    before = state.model.unet.conv_out.bias.detach().clone(), state.model.unet.conv_in.weight.detach().clone()
    list(fit(state, batches))
    after = state.model.unet.conv_out.bias.detach(), state.model.unet.conv_in.weight.detach()
    torch.testing.assert_close((after[0] - before[0]).abs(), torch.full((3,), 1e-3), rtol=1e-3, atol=0)
    # conv_out is zero at first: nothing behind it has a gradient yet, and decay alone moves those weights
    torch.testing.assert_close(after[1], before[1] * (1 - 1e-3 * 0.5))


def test_ema_closed_form(tiny_config, batches):
    """The average starts as the first step's weights; afterwards ema = decay ema + (1 - decay) weights."""
    state = TrainState(tiny_config(ema=0.75))
    expected = None
    for _ in fit(state, batches):
        weights = state.model.unet.conv_out.weight.detach().clone()
        expected = weights if expected is None else 0.75 * expected + 0.25 * weights
        torch.testing.assert_close(state.ema_model.unet.conv_out.weight, expected)
    assert not torch.equal(state.ema_model.unet.conv_out.weight, weights)
    assert not state.ema_model.training and state.model.training


def test_the_two_gradients_are_clipped_apart(tiny_config, batches, monkeypatch):
    state = TrainState(tiny_config(clip=1e-3, clip_guidance=1e-2, guidance_weight=1e4, steps=1))
    norms = {}

    def step(*_, **__):
        for name, part in (("unet", state.model.unet), ("guidance", state.model.guidance)):
            norms[name] = math.sqrt(sum(float(p.grad.square().sum()) for p in part.parameters() if p.grad is not None))

    monkeypatch.setattr(state.optimizer, "step", step)
    (record,) = fit(state, batches)
    assert norms == pytest.approx({"unet": 1e-3, "guidance": 1e-2}, rel=1e-3)
    assert record.grad_norm_guidance > 100 and 1e-3 < record.grad_norm < 100  # reported as they were


def test_guidance_weight_scales_its_loss(tiny_config, batches):
    gradients = {}
    for weight in (0.0, 1.0, 10.0):
        (record,) = fit(tiny_config(guidance_weight=weight, steps=1, clip_guidance=1e9), batches)
        gradients[weight] = float(record.grad_norm_guidance)
    assert gradients[0.0] == 0 and gradients[10.0] == pytest.approx(10 * gradients[1.0], rel=1e-3)


def test_loss_that_is_not_finite_stops_with_a_message(tiny_config, batches):
    def poisoned(step):
        y0, x = batches(step)
        return (y0 * math.nan if step == 2 else y0), x

    state = TrainState(tiny_config())
    records = fit(state, poisoned)
    assert [next(records).step, next(records).step] == [1, 2]
    with pytest.raises(NotFiniteError, match="not finite at step 3; .* lower lr"):
        next(records)


def test_precision(device):
    assert use_bf16("bf16", device) and not use_bf16("fp32", device)
    assert isinstance(use_bf16("auto", device), bool)
    assert not use_bf16("auto", torch.device("meta"))


def test_weights_stay_fp32_and_channels_last(tiny_config, batches):
    state = TrainState(tiny_config(precision="bf16", steps=2))
    list(fit(state, batches))
    assert state.bf16 and all(p.dtype == torch.float32 for p in state.model.parameters())
    assert state.model.unet.down[0][0].conv_1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("crop", [64, 96])
def test_the_layout_changes_the_speed_and_nothing_else(tiny_config, crop, monkeypatch):
    """Large crops in fp32 on a CPU train in the ordinary layout: weights and what the network sees; the losses are the same."""
    config = tiny_config(precision="fp32", crop=crop, batch=2, steps=2)
    pairs = SyntheticPairs(scene_contents(4, size=crop), "gopro_like")
    state, seen = TrainState(config), []
    state.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    losses = [r.to_dict() for r in fit(state, Batches(pairs, 2, crop))]
    assert seen == [crop == 96] * 2
    assert state.model.unet.down[0][0].conv_1.weight.is_contiguous() == (crop == 96)
    monkeypatch.setattr(train, "training_layout", lambda *_: torch.channels_last)
    for one, other in zip(fit(TrainState(config), Batches(pairs, 2, crop)), losses, strict=True):
        assert one.to_dict() == pytest.approx(other, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("resumed_in_bf16", [False, True])
def test_a_checkpoint_goes_on_in_the_layout_of_its_new_number_type(resumed_in_bf16, tiny_config, monkeypatch):
    """The fused optimiser reads weights and moments as they lie: those of another layout would meet the wrong weights."""
    pairs = SyntheticPairs(scene_contents(4, size=96), "gopro_like")
    config = tiny_config(precision="fp32", crop=96, batch=2, steps=4)
    if not resumed_in_bf16:  # as one was written before there were two layouts
        monkeypatch.setattr(train, "training_layout", lambda *_: torch.channels_last)
    before = TrainState(config)
    list(fit(before, Batches(pairs, 2, 96), dataclasses.replace(config, steps=2)))
    saved = copy.deepcopy(before.state_dict())
    expected = [r.to_dict() for r in fit(before, Batches(pairs, 2, 96))]
    monkeypatch.undo()

    state = TrainState(dataclasses.replace(config, precision="bf16" if resumed_in_bf16 else "fp32"))
    state.load_state_dict(saved, accept_changes=resumed_in_bf16)
    assert state.layout == (torch.channels_last if resumed_in_bf16 else torch.contiguous_format)
    for average, weight in zip(state.ema_model.parameters(), state.model.parameters(), strict=True):
        moments = state.optimizer.state[weight]
        assert weight.stride() == moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == average.stride()
    for number, moments in enumerate(state.optimizer.state.values()):
        assert torch.equal(moments["exp_avg"], saved["optimizer"]["state"][number]["exp_avg"])
    found = [r.to_dict() for r in fit(state, Batches(pairs, 2, 96))]
    tolerance = 0.03 if resumed_in_bf16 else 1e-3
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=1e-5)
    for one, other in zip(state.model.parameters(), before.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=(5e-3 if resumed_in_bf16 else 1e-4))


def test_a_measured_number_type_goes_on_as_it_began(tiny_config, batches, monkeypatch):
    config = tiny_config(precision="auto", crop=96)
    monkeypatch.setattr(train, "bf16_is_faster", lambda kind: False)
    before = TrainState(config)
    monkeypatch.setattr(train, "bf16_is_faster", lambda kind: True)
    after = TrainState(config)
    assert after.bf16 and after.layout == torch.channels_last
    after.load_state_dict(before.state_dict())
    assert not after.bf16 and after.layout == torch.contiguous_format
    assert after.model.unet.down[0][0].conv_1.weight.is_contiguous()


def test_layout(tiny_config):
    config, cpu, cuda = tiny_config(crop=128), torch.device("cpu"), torch.device("cuda")
    assert train.training_layout(config, cpu, bf16=False) is torch.contiguous_format
    assert train.training_layout(config, cpu, bf16=True) is torch.channels_last
    assert train.training_layout(config, cuda, bf16=False) is torch.channels_last
    assert train.training_layout(tiny_config(crop=128, dims=1, channels=1), cpu, bf16=False) is torch.channels_last


@pytest.mark.parametrize("changes", [{}, {"scales": ()}, {"precision": "bf16"}])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_config, accumulate, device, changes):
    """Losses, gradient norms and weights agree, whatever the number of micro-batches: noise and data do not depend on it."""
    pairs = SyntheticPairs(scene_contents(8), "gopro_like", device=device)
    whole, parts = (TrainState(tiny_config(batch=4, accumulate=n, **changes), device) for n in (1, accumulate))
    rows, pieces = ([r.to_dict() for r in fit(state, Batches(pairs, 4, 16))] for state in (whole, parts))
    tolerance = 0.03 if changes.get("precision") == "bf16" else 1e-3
    for one, other in zip(rows, pieces, strict=True):
        assert other == pytest.approx(one, rel=tolerance, abs=1e-6)
    if tolerance == 1e-3:
        for name, value in tensors(whole).items():
            torch.testing.assert_close(tensors(parts)[name], value, rtol=0, atol=2e-4)


def test_micro_batches_are_seen_one_by_one(tiny_config, batches, monkeypatch):
    """No more than a micro-batch is ever in the network: that is what saves the memory."""
    sizes = []
    monkeypatch.setattr(train, "loss_terms", lambda *a: (sizes.append(len(a[2])), loss_terms(*a))[1])
    list(fit(tiny_config(batch=4, accumulate=4, steps=2), Batches(batches.pairs, 4, 16)))
    assert sizes == [1] * 8


def test_compiled_training_learns_the_same(tiny_config, batches, monkeypatch):
    """By a backend that needs no C compiler: the graph is whole, micro-batches and all, and is compiled once."""
    compiled = []
    real = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda model, **options: compiled.append(options) or real(model, backend="aot_eager", **options),
    )
    rows = [[r.to_dict() for r in fit(tiny_config(compile=on, accumulate=2, steps=2), batches)] for on in (False, True)]
    assert compiled == [{"fullgraph": True, "dynamic": False}]
    for one, other in zip(*rows, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_compiled_trainings_follow_each_other(tiny_config, monkeypatch):
    """More than torch keeps compiled forms, at other sizes; the averaged weights, looked at in between, are not compiled."""
    real, graphs = torch.compile, []
    monkeypatch.setattr(
        torch, "compile", lambda model, **o: real(model, backend=lambda g, _: graphs.append(g) or g.forward, **o)
    )
    for crop, widths in ((16, (16, 16)), (32, (16, 16)), (16, (16, 32))):
        image = torch.zeros(2, 3, crop, crop)
        state = TrainState(tiny_config(crop=crop, widths=widths, scales=(1,), compile=True, steps=2))
        with torch._dynamo.config.patch(recompile_limit=1):
            for _ in fit(state, lambda step, image=image: (image, image)):
                with torch.no_grad():
                    state.ema_model(*[torch.zeros(1, 3, 48, 64)] * 2, torch.full((1,), 0.5))
    assert len(graphs) == 3


def test_without_a_compiler_the_command_says_so_in_one_sentence(tmp_path, capsys, monkeypatch):
    def backend(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable\nand more lines")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=backend, **options))
    settings = ["widths=16,16", "scales=1", "crop=16", "batch=2", "content_count=4", "precision=fp32", "compile=true"]
    assert main(["train", "--out", str(tmp_path / "out"), "--device", "cpu", "--set", *settings]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == (
        "tinymsg: torch.compile failed (RuntimeError: Failed to find C compiler. Please specify via CC environment "
        "variable): compile needs a C compiler and Python's headers; install them or use --set compile=false"
    )


@pytest.mark.parametrize(("gpus", "instead"), [(2, "torchrun --nproc-per-node 2"), (0, "--device cpu")])
@pytest.mark.parametrize("started", [{"LOCAL_RANK": "2"}, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}])
def test_more_processes_than_gpus_is_one_sentence_of_each(tmp_path, capsys, monkeypatch, started, gpus, instead):
    """Said before any of them has touched a GPU, which is not its own."""
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert main(["train", "--out", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == (
        "tinymsg: each process needs a GPU of its own: 3 processes were started on this machine, which has "
        f"{gpus}: give {instead}\n"
    )


def test_accumulate_is_checked(tiny_config):
    with pytest.raises(ValueError, match="accumulate must divide batch: 4 crops do not part into 3"):
        tiny_config(batch=4, accumulate=3)
    with pytest.raises(ValueError, match="accumulate must be at least 1"):
        tiny_config(accumulate=0)


# --- variants of the ablations ----------------------------------------------------------------------------------


def test_a_head_start_moves_the_guidance_alone(tiny_config, batches):
    config = tiny_config(head_start=2, steps=4)
    state = TrainState(config)
    before = {name: value.clone() for name, value in state.model.named_parameters()}
    steps = fit(state, batches)
    moved = []
    for _ in range(3):
        next(steps)
        now = {name for name, value in state.model.named_parameters() if not torch.equal(value, before[name])}
        moved.append({name.split(".")[0] for name in now})
    assert moved[:2] == [{"guidance"}] * 2 and moved[2] == {"guidance", "unet"}


def test_withholding_is_drawn_from_the_step_and_changes_the_loss(tiny_config, batches):
    def losses(**changes):
        config = tiny_config(steps=3, **changes)
        return [float(record.denoise) for record in fit(config, batches)]

    assert losses(withhold=0.5) == losses(withhold=0.5)
    assert losses(withhold=1.0)[-1] != losses()[-1]
    parts = losses(withhold=0.5, batch=2, accumulate=2)
    assert parts == pytest.approx(losses(withhold=0.5), rel=1e-3)


# --- nothing waits for the GPU ----------------------------------------------------------------------------------


class OnFakeGPU(torch.Generator):
    """A generator that says it is a GPU's."""

    device = torch.device("cuda", 0)

    def __new__(cls, device=None):
        return super().__new__(cls)


class NoCopies(TorchDispatchMode):
    """Fails where something is copied from the CPU's memory to the GPU's, or back: both wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and "copy" in str(function):
            devices = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)}
            assert len(devices) == 1, f"{function} from one memory to the other"
        return result


def fake_gpu_state(monkeypatch, config) -> TrainState:
    """A training on a GPU that is not there: shapes and devices without values, so that reading one raises."""
    monkeypatch.setattr(torch, "Generator", OnFakeGPU)
    monkeypatch.setattr(Schedule, "__post_init__", lambda self: None)  # it looks at its values, once, when it is made
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: self)  # fake weights cannot be exchanged
    with torch.device("cuda"):
        model = build_model(config)

    def backward(loss):  # autograd would ask the driver
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    return TrainState(config, "cuda", model)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor", "ignore:CUDA is not available")
def test_a_step_never_waits_for_the_gpu(tiny_config, monkeypatch):
    config = tiny_config(steps=4, batch=2, accumulate=2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = fake_gpu_state(monkeypatch, config)
        y0, x = (torch.zeros(2, 3, 16, 16, device="cuda") for _ in range(2))
        steps = fit(state, lambda step: (y0, x))
        with NoCopies():
            for _ in range(3):
                record = next(steps)
        assert state.step == 3 and record.denoise.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):  # so it would have been seen
            record.to_dict()
        with pytest.raises(AssertionError, match="from one memory to the other"), NoCopies():
            torch.zeros(2).to("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu_no_step_waits_for_it(tiny_config, cuda_graph, accumulate):
    config = tiny_config(steps=6, batch=2, accumulate=accumulate, cuda_graph=cuda_graph)
    y0, x = (torch.zeros(2, 3, config.crop, config.crop, device="cuda") for _ in range(2))
    steps = fit(TrainState(config, "cuda"), lambda step: (y0, x))
    for _ in range(2):
        next(steps)
    with no_waiting():
        for _ in range(3):
            next(steps)


@pytest.mark.parametrize("failing", [False, True])
def test_what_forbids_waiting_is_silent_and_leaves_nothing_behind(failing, monkeypatch):
    """torch warns at the first call, after it has set the mode: as an error, that would leave it set for all tests that follow."""
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


# --- a step recorded as a CUDA graph ----------------------------------------------------------------------------


def as_recorded(model: torch.nn.Module) -> torch.nn.Module:
    """As torch.cuda.make_graphed_callables does, on the CPU: each backward pass writes into the same tensors and returns them."""
    names, weights = zip(*model.named_parameters(), strict=True)
    static = [torch.empty_like(weight).detach() for weight in weights]
    layout = []

    def call(images, weights):
        return tree_flatten(functional_call(model, dict(zip(names, weights, strict=True)), images))

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            ctx.images = tuple(image.detach() for image in arguments[:3])
            outputs, spec = call(ctx.images, weights)
            layout[:] = [spec]
            return tuple(output.detach() for output in outputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *gradients):
            with torch.enable_grad():
                copies = [weight.detach().requires_grad_() for weight in weights]
                found = torch.autograd.grad(call(ctx.images, copies)[0], copies, gradients, allow_unused=True)
            for buffer, gradient in zip(static, found, strict=True):
                if gradient is not None:
                    buffer.copy_(gradient)
            return (None,) * 3 + tuple(
                b.detach() if g is not None else None for b, g in zip(static, found, strict=True)
            )

    class Network(torch.nn.Module):
        def forward(self, *images):
            return tree_unflatten(list(Recorded.apply(*images, *weights)), layout[0])

    return Network()


@pytest.mark.parametrize(
    "changes", [{}, {"target": "none", "stop_gradient": True}]
)  # some weights there have no gradient
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_gradients_of_a_recorded_pass_add_up(tiny_config, batches, monkeypatch, accumulate, changes):
    """Autograd keeps the tensor that a pass returns as the weight's gradient, and the next pass would overwrite it."""
    monkeypatch.setattr(train, "_graphed", lambda state, config: as_recorded(state.model))
    rows = []
    for on in (False, True):
        config = tiny_config(batch=4, accumulate=accumulate, cuda_graph=on, steps=3, **changes)
        rows.append([record.to_dict() for record in fit(config, Batches(batches.pairs, 4, 16))])
    for eager, recorded in zip(*rows, strict=True):
        assert recorded == pytest.approx(eager, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor", "ignore:CUDA is not available")
def test_a_second_training_records_the_model_and_not_the_first_recording(tiny_config, monkeypatch):
    """make_graphed_callables replaces the module's forward: to record that again would replay a graph within a recording."""
    seen, devices = [], []

    def record(model, images, **options):
        seen.append(("forward" in vars(model), len(images[0]), options))
        model.forward = lambda *images: None
        return model

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "device", lambda device: devices.append(device) or contextlib.nullcontext())
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = tiny_config(batch=4, accumulate=2, cuda_graph=True)
        state = fake_gpu_state(monkeypatch, config)
        for _ in range(2):
            assert train._network(state, config) is state.model
    assert seen == [(False, 2, {"allow_unused_input": True})] * 2 and devices == [state.device] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("changes", [{}, {"target": "none", "stop_gradient": True}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_recorded_step_learns_what_an_eager_one_does(tiny_config, monkeypatch, accumulate, changes):
    """And so does a second training of the same state, recorded anew."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    rows = []
    for on in (False, True):
        config = tiny_config(steps=6, batch=4, accumulate=accumulate, precision="fp32", cuda_graph=on, **changes)
        generator = torch.Generator().manual_seed(0)
        y0, x = ((torch.rand(4, 3, config.crop, config.crop, generator=generator) * 2 - 1).to("cuda") for _ in range(2))
        state, records = TrainState(config, "cuda"), []
        for steps in (3, 6):
            records += fit(state, lambda step, y0=y0, x=x: (y0, x), dataclasses.replace(config, steps=steps))
        rows.append([record.to_dict() for record in records])
    for eager, recorded in zip(*rows, strict=True):
        assert recorded == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("changes, message", [({}, "needs one process on a GPU"), ({"compile": True}, "not both")])
def test_where_a_cuda_graph_cannot_be(tiny_config, batches, changes, message):
    with pytest.raises(ValueError, match=message):
        next(fit(TrainState(tiny_config(cuda_graph=True, **changes)), batches))


def test_the_first_average_is_the_weights_and_later_ones_lag(tiny_config, batches):
    """In closed form: after n steps, w_1 decayed n - 1 times plus what came in later."""
    config = tiny_config(steps=3, ema=0.9)
    state, history = TrainState(config), []
    for _ in fit(state, batches):
        history.append({name: value.clone() for name, value in state.model.named_parameters()})
    for name, average in state.ema_model.named_parameters():
        expected = history[0][name]
        for later in history[1:]:
            expected = 0.9 * expected + 0.1 * later[name]
        torch.testing.assert_close(average, expected)

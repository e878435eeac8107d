import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tinymsg import train
from tinymsg.data import Batches, SyntheticPairs, scene_contents
from tinymsg.guidance import structure_targets
from tinymsg.model import PREDICTIONS, Model, load_model
from tinymsg.schedule import q_sample
from tinymsg.train import (
    NotFiniteError, TrainState, fit, loss_terms, make_batches, resume, run, save_checkpoint, use_bf16,
)  # fmt: skip

LEVEL = torch.tensor([0.3, 0.8])


@pytest.fixture
def batches(tiny_config):
    """A function of the step, as `fit` wants it."""
    return Batches(SyntheticPairs(scene_contents(8), "gopro_like"), batch=2, size=16)


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": value.clone() for part, module in (("model", state.model), ("ema", state.ema_model))
            for name, value in module.state_dict().items()}  # fmt: skip


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
        def forward(self, z_t, x_seen, noise_level, hidden):
            assert hidden is None and torch.equal(z_t, q_sample(y0, LEVEL, eps)) and torch.equal(x_seen, x)
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


@pytest.mark.parametrize("changes", [
    {}, {"scales": ()}, {"predict": "eps", "residual": False}, {"predict": "v"}, {"kind": "regression", "scales": ()},
    {"precision": "bf16"}])  # fmt: skip
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


@pytest.mark.parametrize("changes", [{"dims": 1, "channels": 1, "widths": (16, 16), "scales": (1,)},
                                     {"stop_gradient": True}, {"target": "none", "stop_gradient": True},
                                     {"dropout": 0.2}, {"how": "both", "inject": "structure"}])  # fmt: skip
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
    with pytest.raises(NotFiniteError, match="loss is nan .* at step 3; lower lr"):
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


# --- checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.0, "scales": ()}, {"precision": "bf16"}])
def test_resumed_training_is_the_same_to_the_bit(tiny_config, batches, tmp_path, device, changes):
    config = tiny_config(**changes)
    on_device = lambda step: tuple(image.to(device) for image in batches(step))  # noqa: E731
    straight = TrainState(config, device)
    losses = [r.to_dict() for r in fit(straight, on_device)]

    first = TrainState(config, device)
    records = fit(first, on_device)
    split = [next(records).to_dict() for _ in range(3)]
    save_checkpoint(tmp_path, first)
    torch.manual_seed(99)  # whatever else happens in the process
    second = TrainState(config, device)
    path, damaged = resume(tmp_path, second)
    assert path.name == "checkpoint-00000003.pt" and damaged == [] and second.step == 3
    split += [r.to_dict() for r in fit(second, on_device)]
    assert split == losses
    expected, actual = tensors(straight), tensors(second)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_damaged_checkpoint_is_passed_over(tiny_config, batches, tmp_path):
    state = TrainState(tiny_config())
    for record in fit(state, batches):
        if record.step in (2, 4):
            save_checkpoint(tmp_path, state)
    newest = tmp_path / "checkpoint-00000004.pt"
    whole = newest.read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:-10], b"", b"not a checkpoint"):
        newest.write_bytes(damage)
        fresh = TrainState(tiny_config())
        path, damaged = resume(tmp_path, fresh)
        assert path.name == "checkpoint-00000002.pt" and fresh.step == 2
        (sentence,) = damaged
        assert sentence.startswith("checkpoint-00000004.pt is damaged") and "\n" not in sentence
    (tmp_path / "checkpoint-00000002.pt").write_bytes(b"")
    fresh = TrainState(tiny_config())
    assert resume(tmp_path, fresh)[0] is None and len(resume(tmp_path, fresh)[1]) == 2 and fresh.step == 0


def test_no_code_runs_from_a_checkpoint(tiny_config, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), tmp_path / "checkpoint-00000001.pt")
    assert resume(tmp_path, TrainState(tiny_config()))[0] is None
    assert not (tmp_path / "ran").exists()


def test_nothing_to_resume(tiny_config, tmp_path):
    state = TrainState(tiny_config())
    assert resume(tmp_path / "nowhere", state) == (None, []) and state.step == 0


def test_two_checkpoints_are_kept_and_no_partial_file(tiny_config, tmp_path):
    state = TrainState(tiny_config())
    for step in (1, 5, 10, 200):
        state.step = step
        path = save_checkpoint(tmp_path / "out", state)
        assert path.is_file()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["checkpoint-00000010.pt", "checkpoint-00000200.pt"]


def test_a_kill_while_writing_leaves_the_last_checkpoint(tiny_config, tmp_path, monkeypatch):
    state = TrainState(tiny_config())
    save_checkpoint(tmp_path, state)

    def killed(values, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    state.step = 0
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state)
    assert resume(tmp_path, TrainState(tiny_config())) == (tmp_path / "checkpoint-00000000.pt", [])


def test_a_checkpoint_of_other_settings_is_refused(tiny_config, tmp_path):
    save_checkpoint(tmp_path, TrainState(tiny_config()))
    other = TrainState(tiny_config(lr=1e-5, guidance_width=16))
    before = tensors(other)
    with pytest.raises(ValueError, match="other settings: guidance_width, lr; use the same"):
        resume(tmp_path, other)
    assert all(torch.equal(before[name], value) for name, value in tensors(other).items())


# --- a whole run ------------------------------------------------------------------------------------------------


def test_run_logs_saves_and_goes_on_as_if_never_stopped(tiny_config, batches, tmp_path):
    config = tiny_config()
    run(TrainState(config), batches, tmp_path / "straight", log_every=1, save_every=2)
    state = TrainState(config)

    class Killed(Exception):
        pass

    def until_four(step):
        if step == 4:
            raise Killed
        return batches(step)

    until_four.pairs = batches.pairs
    with pytest.raises(Killed):
        run(state, until_four, tmp_path / "split", log_every=1, save_every=3)
    again = TrainState(config)
    assert resume(tmp_path / "split", again)[0].name == "checkpoint-00000003.pt"
    run(again, batches, tmp_path / "split", log_every=1, save_every=3)
    log = (tmp_path / "straight" / "log.csv").read_text()
    assert (tmp_path / "split" / "log.csv").read_text() == log
    lines = log.splitlines()
    assert lines[0].startswith("step,denoise,guidance") and [line.split(",")[0] for line in lines[1:]] == list("123456")
    weights = [tmp_path / name / "weights.safetensors" for name in ("straight", "split")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    ema = again.ema_model.state_dict()
    assert all(torch.equal(v, ema[k].half().float()) for k, v in load_model(weights[0]).state_dict().items())


def test_make_batches(tiny_config, tmp_path):
    batches = make_batches(tiny_config(domain="noise", seed=4), torch.device("cpu"))
    y0, x = batches(0)
    assert y0.shape == x.shape == (2, 3, 16, 16)
    assert batches.pairs.seed == 4 and "noise on scenes(count=8" in batches.pairs.name
    assert make_batches(tiny_config(channels=1), torch.device("cpu"))(0)[0].shape == (2, 1, 16, 16)
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (20, 24), (90, 80, 70)).save(tmp_path / side / "1.png")
    assert make_batches(tiny_config(), torch.device("cpu"), str(tmp_path))(0)[0].shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="unknown content"):
        make_batches(tiny_config(content="paintings"), torch.device("cpu"))


WORKER = """
import sys, torch
from pathlib import Path
from tinymsg.model import Config
from tinymsg.train import TrainState, fit, join_processes, leave_processes, make_batches
torch.set_num_threads(1)
device = join_processes(torch.device("cpu"))
config = Config(widths=(16, 16), scales=(1,), crop=16, batch=4, steps=3, warmup=0, guidance_width=8, guidance_blocks=1,
                content_count=8, precision="fp32")
state = TrainState(config)
records = [r.to_dict() for r in fit(state, make_batches(config, device))]
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "alone"
torch.save((records, state.model.state_dict()), Path(sys.argv[1]) / f"{rank}.pt")
leave_processes()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_learn_what_one_does(tmp_path):
    """Under torchrun each takes its share of the batch and of the noise: losses and weights are those of one process."""
    root = str(Path(__file__).resolve().parents[1])
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for start in (torchrun, [sys.executable]):
        done = subprocess.run([*start, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
    (records, alone), (records_0, first), (records_1, second) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("alone", "0", "1"))  # fmt: skip
    assert records_0 == records_1 and all(torch.equal(first[name], second[name]) for name in first)
    for one, two in zip(records, records_0, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=2e-4)


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

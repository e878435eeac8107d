"""The estimate holds against what is measured here."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinymsg.model import Recipe, build_model, count_parameters
from tinymsg.train import TrainState, loss_terms
from tinymsg.training.estimate import (
    CARDS,
    CONTEXT,
    SPARE,
    estimate_line,
    gigaflops,
    saved_bytes,
    seconds_a_step,
    step_bytes,
    table_text,
    what_fits,
)
from tinymsg.training.profiles import profile

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scales": ()},
        {"how": "both"},
        {"kind": "regression", "scales": ()},
        {"dims": 1, "channels": 1, "widths": (16, 16), "scales": (1,)},
    ],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_saved_bytes_scale_with_the_batch(tiny_recipe, changes, bf16):
    recipe = tiny_recipe(crop=32, **changes)
    one, two, seven = (saved_bytes(recipe, n, bf16)[0] for n in (1, 2, 7))
    assert one + 6 * (two - one) == pytest.approx(seven, rel=0.02) and two > one


def test_number_types_are_counted(tiny_recipe):
    half, full = (saved_bytes(tiny_recipe(crop=32), 2, bf16)[0] for bf16 in (True, False))
    assert half < 0.65 * full


@pytest.mark.parametrize(
    "changes", [{}, {"how": "both"}, {"dims": 1, "channels": 1, "widths": (16, 16), "scales": (1,)}]
)
@pytest.mark.parametrize("bf16", [False, True])
def test_tensors_without_content_are_counted_as_real_ones(tiny_recipe, changes, bf16):
    """Against the same count in a real pass on the CPU, by the addresses of what autograd keeps."""
    recipe = tiny_recipe(crop=32, **changes)
    model = build_model(recipe.network).to(memory_format=torch.channels_last).train()
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    image = torch.zeros(2, recipe.network.channels, 32 if recipe.network.dims == 2 else 1, 32)
    image = image.contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        losses = loss_terms(model, image, image.clone(), torch.full((2,), 0.5), torch.zeros_like(image))
    sizes = [size for address, size in kept.items() if address not in weights]
    counted = saved_bytes(recipe, 2, bf16)
    assert losses[0].requires_grad and counted == pytest.approx((sum(sizes), max(sizes)), rel=0.01)


def test_counting_takes_neither_memory_nor_random_numbers():
    """The full profile with crops of 4096 would need a terabyte."""
    stream = torch.random.get_rng_state()
    assert step_bytes(profile("full").change(crop=4096), 10, 10) > 1e12
    assert torch.equal(stream, torch.random.get_rng_state())


PEAK = """
import torch
from tinymsg.model import Recipe
from tinymsg.train import TrainState, fit
from tinymsg.training.runs import peak_memory
torch.set_num_threads(1)
tiny = Recipe().change(widths=(32, 32), scales=(1,), crop=64, steps=2, content_count=1, precision="fp32")
for batch in (12, 24):
    image = torch.ones(batch, 3, 64, 64)
    list(fit(TrainState(tiny.change(batch=batch)), lambda step: (image, image)))
    print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.course
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory")
def test_the_prediction_for_another_batch_holds_against_a_real_step():
    """Peak memory of training steps, as the system saw it, with 12 and 24 crops: they differ as predicted."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={  # freed memory goes back at once
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MALLOC_TRIM_THRESHOLD_": "0",
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
    )
    assert done.returncode == 0, done.stderr
    smaller, larger = map(int, done.stdout.split())
    recipe = Recipe().change(widths=(32, 32), scales=(1,), crop=64, content_count=1, precision="fp32")
    predicted = step_bytes(recipe, 24, 24, bf16=False) - step_bytes(recipe, 12, 12, bf16=False)
    assert larger - smaller == pytest.approx(predicted, rel=0.2)


def test_fitting():
    """The largest micro-batch that divides the share and fits beside CUDA and what is spared."""
    recipe = Recipe().change(batch=64)
    exactly = (step_bytes(recipe, 8, 64) + CONTEXT) / (1 - SPARE) / 1e9
    assert [what_fits(recipe, card)[0] for card in (exactly * 1.001, exactly * 0.999, 0.5, 1e6)] == [8, 4, 0, 64]
    assert what_fits(recipe, 1e6, processes=8)[0] == 8
    images = 3 * 4 * 3 * recipe.training.crop**2  # bytes of one crop's y0, x and eps
    assert step_bytes(recipe, 8, 64) - step_bytes(recipe, 8, 32) == 32 * images


def test_the_table_of_the_full_profile():
    recipe = profile("full")
    for n in (1, 8):
        fits = [what_fits(recipe, card, n) for card in CARDS]
        for card, (micro, needed) in zip(CARDS, fits, strict=True):
            assert recipe.training.batch % (micro * n) == 0 and needed <= card * 1e9 * (1 - SPARE)
        assert fits == sorted(fits) and fits[0][0] >= 4
    ones = [what_fits(recipe, card)[0] for card in CARDS]
    assert ones[-1] == recipe.training.batch == 256 > ones[0]
    text = table_text(recipe)
    assert text.count("\n") == 5 and f"| 8 GB | {ones[0]} x {256 // ones[0]} |" in text
    assert "does not fit" in table_text(recipe, (1,))


def test_gigaflops(tiny_recipe):
    """Counted, against a closed form for one known layer: conv_out alone differs between one and three channels."""
    plain = {"scales": (), "widths": (16,), "crop": 32}
    difference = gigaflops(tiny_recipe(**plain, channels=3)) - gigaflops(tiny_recipe(**plain, channels=1))
    # conv_in reads 4 channels more, conv_out writes 2 more; 3x3 taps, 16 channels on the other side, 2 operations, x 3
    assert difference == pytest.approx(3 * 2 * 9 * 16 * (4 + 2) * 32 * 32 / 1e9, rel=1e-3)
    assert gigaflops(profile("full")) == pytest.approx(50, rel=0.1)


def test_timing_leaves_the_state_alone(tiny_recipe):
    state = TrainState(tiny_recipe())
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    stream = torch.random.get_rng_state()
    one, four = seconds_a_step(state, crops=1), seconds_a_step(state, crops=2)
    assert one > 0 and four > 0 and state.step == 0
    assert all(torch.equal(before[name], value) for name, value in state.model.state_dict().items())
    assert all(p.grad is None for p in state.model.parameters()) and torch.equal(stream, torch.random.get_rng_state())


@pytest.mark.parametrize("room, tried", [(3, [8, 4, 2, 2, 2]), (1, [8, 4, 2, 1, 1, 1]), (0, [8, 4, 2, 1])])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
)
def test_crops_that_do_not_fit_are_halved(tiny_recipe, monkeypatch, room, tried, error):
    """On a small card the estimate says which micro-batch fits, instead of failing with one that does not."""
    seen = []

    def on_a_small_card(model, y0, *others):
        seen.append(len(y0))
        assert all(p.grad is None for p in model.parameters())
        if len(y0) > room:
            raise error
        return loss_terms(model, y0, *others)

    monkeypatch.setattr("tinymsg.training.estimate.loss_terms", on_a_small_card)
    state = TrainState(tiny_recipe(batch=16))
    with pytest.raises(type(error)) if room == 0 else contextlib.nullcontext():
        assert seconds_a_step(state, crops=8) > 0
    assert seen == tried


def test_the_line(tiny_recipe, monkeypatch):
    monkeypatch.setattr("tinymsg.training.estimate.seconds_a_step", lambda state, processes: 36.0)
    state = TrainState(tiny_recipe(steps=1000))
    state.step = 500
    line = estimate_line(state)
    assert "5:00:00 for 500 steps" in line
    assert count_parameters(state.model) * 20 / 1e9 < float(line.split("), ")[1].split()[0]) < 0.1

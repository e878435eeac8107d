"""Devices, number types, files that appear whole; and what a device cannot do, or would be waited for, is not asked."""

import hashlib
import os

import pytest
import torch
from gpu_cases import Forbidden, OnDevice

from tinymsg import machine, sample
from tinymsg.data import DOMAINS, SyntheticPairs, scene_contents
from tinymsg.evaluate import psnr, radial_spectrum, ssim
from tinymsg.machine import accelerator, atomic_write, out_of_memory, sha256, synchronize, upload, use_bf16
from tinymsg.model import PREDICTIONS, build_model
from tinymsg.sample import SAMPLERS, Setting, restore
from tinymsg.train import TrainState, fit

# --- number types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [(False, False), (False, True), (True, False)])
def test_bf16_follows_a_rule(monkeypatch, units):
    """What is asked for; of itself only where the processor has units for it. No clock is looked at."""
    for name, there in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), units, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda there=there: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("time.perf_counter", lambda: 1 / 0)
    cpu, old_gpu = torch.device("cpu"), torch.device("cuda")
    assert use_bf16("auto", cpu) is any(units)
    for device in (cpu, old_gpu):
        assert use_bf16("bf16", device) and not use_bf16("fp32", device)
    assert not use_bf16("auto", old_gpu)  # emulated there: slower
    assert not use_bf16("auto", torch.device("mps"))


# --- devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", None])
def test_any_accelerator_is_found_and_waited_for(monkeypatch, kind):
    waited = []
    found = kind and torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    device = accelerator()
    synchronize(device)
    assert device.type == (kind or "cpu") and waited == ([device] if kind else [])


def test_what_is_uploaded_is_the_same(device):
    tensor = torch.arange(5)
    assert torch.equal(upload(tensor, device).cpu(), tensor) and upload(tensor, device).device.type == device.type


def test_the_stand_in_forbids_what_it_should(stand_in):
    """Guards the tests below: each rule can fail."""

    def forbidden(action):
        with pytest.raises(Forbidden):
            action()

    with stand_in():
        here = torch.zeros(3, device="cuda")
        assert (here + upload(torch.ones(3), here.device)).device.type == "cuda"
        for action in (here.double, lambda: torch.zeros(1, device="cuda", dtype=torch.float64)):
            forbidden(action)  # no float64 there
        for action in (here.sum().item, here.cpu, lambda: bool(here.any())):
            forbidden(action)  # the CPU would wait
        for action in (lambda: torch.zeros(3).to("cuda"), lambda: torch.zeros(3).pin_memory().to("cuda")):
            forbidden(action)
        forbidden(lambda: here + torch.ones(3))
    with stand_in(may_wait=True):
        assert torch.equal(torch.arange(3.0).to("cuda").cpu(), torch.arange(3.0))
        forbidden(here.double)


@pytest.mark.parametrize("name", DOMAINS)
def test_synthetic_batches_wait_for_no_device(stand_in, name):
    contents, index = scene_contents(4, size=24), torch.arange(4)
    expected = SyntheticPairs(contents, name).crops(index, 16)
    with stand_in():
        found = SyntheticPairs(contents, name, device="cuda").crops(index, 16)
    for image, wanted in zip(found, expected, strict=True):
        assert image.device.type == "cuda"
        torch.testing.assert_close(image.held, wanted)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_restoring_needs_no_float64_on_the_device(stand_in, tiny_recipe, images, monkeypatch, sampler, predict):
    monkeypatch.setattr(sample, "check_images", lambda x, channels: None)  # looks at the values, once a picture
    config = tiny_recipe(predict=predict, scales=(1,)).network
    x = images(1, 3, 8, 11)[1]
    with stand_in():
        with torch.device("cuda"):
            model = build_model(config).eval()
        x = upload(x, torch.device("cuda"))
        output = restore(model, x, Setting(sampler, steps=3, samples=2), torch.Generator("cuda").manual_seed(0))
    assert isinstance(output, OnDevice) and output.shape == x.shape and output.dtype == torch.float32


def on_stand_in(recipe, monkeypatch) -> TrainState:
    """A training on the stand-in. Autograd would ask the driver: gradients there are all zero."""
    with torch.device("cuda"):
        model = build_model(recipe.network)

    def backward(loss):
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: self)  # its weights cannot be exchanged
    return TrainState(recipe, "cuda", model)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"predict": "v", "target": "none"}])
def test_a_training_step_waits_for_no_device_and_needs_no_float64(stand_in, tiny_recipe, monkeypatch, changes):
    pairs = SyntheticPairs(scene_contents(4, size=24), "gopro_like", device="cuda")
    with stand_in():
        state = on_stand_in(tiny_recipe(steps=4, **changes), monkeypatch)
        steps = fit(state, lambda step: pairs.crops(torch.arange(2) + 2 * step, 16))
        for _ in range(3):
            record = next(steps)
        assert state.step == 3 and record.denoise.device.type == "cuda"
        with pytest.raises(Forbidden):  # so it would have been seen
            record.to_dict()


def test_metrics_need_no_float64_on_the_device(stand_in):
    pictures = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = ssim(*pictures), psnr(*pictures), radial_spectrum(pictures[0])
    with stand_in(may_wait=True):
        there = pictures.to("cuda")
        found = [metric.cpu() for metric in (ssim(*there), psnr(*there), radial_spectrum(there[0]))]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted)


# --- memory and files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, expected",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error, expected):
    assert out_of_memory(error) is expected


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_write(path) as partial:
        partial.write_text("first")
        assert not path.exists() and partial.parent == path.parent and partial.suffix == path.suffix
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), atomic_write(str(path)) as partial:
        partial.write_text("half of the sec")
        1 / 0  # noqa: B018
    assert path.read_text() == "first" and os.listdir(path.parent) == ["a.json"]
    with atomic_write(path) as partial:
        partial.write_text("second")
    assert path.read_text() == "second" and os.listdir(path.parent) == ["a.json"]


def test_its_content_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(machine.os, "fsync", lambda file: order.append("content"))
    replace = machine.Path.replace
    monkeypatch.setattr(machine.Path, "replace", lambda *paths: order.append("name") or replace(*paths))
    with atomic_write(tmp_path / "a") as partial:
        partial.write_text("b")
    assert order == ["content", "name"]


def test_sha256_of_a_large_file(tmp_path):
    content = b"tinymsg" * 400_000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == sha256(str(tmp_path / "file")) == hashlib.sha256(content).hexdigest()

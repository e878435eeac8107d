"""Checkpoints: exact, atomic, and never the wrong one; one training a folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinymsg.data import Batches, SyntheticPairs, scene_contents
from tinymsg.train import NotFiniteError, TrainState, fit
from tinymsg.training.checkpoint import (
    HOLDER,
    OtherTrainingError,
    checkpoints,
    is_whole,
    resume,
    save_checkpoint,
    state_dict,
    training_lock,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def batches():
    return Batches(SyntheticPairs(scene_contents(8), "gopro_like"), batch=2, size=16)


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, module in (("model", state.model), ("ema", state.ema_model))
        for name, value in module.state_dict().items()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("changes", [{}, {"scales": ()}, {"accumulate": 2}, {"precision": "bf16"}])
def test_resumed_training_is_the_same_to_the_bit(tiny_recipe, batches, tmp_path, device, changes):
    def on_device(step):
        return tuple(image.to(device) for image in batches(step))

    recipe = tiny_recipe(**changes)
    straight = TrainState(recipe, device)
    losses = [r.to_dict() for r in fit(straight, on_device)]

    first = TrainState(recipe, device)
    records = fit(first, on_device)
    split = [next(records).to_dict() for _ in range(3)]
    save_checkpoint(tmp_path, first)
    torch.manual_seed(99)  # whatever else happens in the process
    second = TrainState(recipe, device)
    path, damaged = resume(tmp_path, second)
    assert path.name == "checkpoint-00000003.pt" and damaged == [] and second.step == 3
    split += [r.to_dict() for r in fit(second, on_device)]
    assert split == losses
    expected, actual = tensors(straight), tensors(second)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_damaged_checkpoint_is_passed_over(tiny_recipe, batches, tmp_path):
    state = TrainState(tiny_recipe())
    for record in fit(state, batches):
        if record.step in (2, 4):
            save_checkpoint(tmp_path, state)
    newest = tmp_path / "checkpoint-00000004.pt"
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # one bit of a weight: torch.load would not notice
    for damage in (whole[: len(whole) // 2], whole[:-10], b"", b"not a checkpoint", bytes(flipped)):
        newest.write_bytes(damage)
        fresh = TrainState(tiny_recipe())
        path, damaged = resume(tmp_path, fresh)
        assert path.name == "checkpoint-00000002.pt" and fresh.step == 2
        (sentence,) = damaged
        assert newest.name in sentence and "damaged" in sentence
    (tmp_path / "checkpoint-00000002.pt").write_bytes(b"")
    fresh = TrainState(tiny_recipe())
    path, damaged = resume(tmp_path, fresh)
    assert path is None and len(damaged) == 2 and fresh.step == 0


def test_no_code_runs_from_a_checkpoint(tiny_recipe, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), tmp_path / "checkpoint-00000001.pt")
    assert resume(tmp_path, TrainState(tiny_recipe()))[0] is None
    assert not (tmp_path / "ran").exists()


def test_nothing_to_resume(tiny_recipe, tmp_path):
    state = TrainState(tiny_recipe())
    assert resume(tmp_path / "nowhere", state) == (None, []) and state.step == 0


def test_two_checkpoints_are_kept_and_no_partial_file(tiny_recipe, tmp_path):
    state = TrainState(tiny_recipe())
    for step in (1, 5, 10, 200):
        state.step = step
        assert save_checkpoint(tmp_path / "out", state).is_file()
    assert names(tmp_path / "out") == ["checkpoint-00000010.pt", "checkpoint-00000200.pt"]


def test_a_kill_while_writing_leaves_the_last_checkpoint(tiny_recipe, tmp_path, monkeypatch):
    state = TrainState(tiny_recipe())
    save_checkpoint(tmp_path, state)

    def killed(values, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state)
    assert resume(tmp_path, TrainState(tiny_recipe())) == (tmp_path / "checkpoint-00000000.pt", [])
    monkeypatch.undo()
    (tmp_path / ".checkpoint-00000007.part.pt").write_bytes(b"half, of another step")
    save_checkpoint(tmp_path, state)
    assert names(tmp_path) == ["checkpoint-00000000.pt"], "half-written ones are taken away"


def test_a_checkpoint_of_other_settings_is_refused(tiny_recipe, tmp_path):
    save_checkpoint(tmp_path, TrainState(tiny_recipe()))
    other = TrainState(tiny_recipe(lr=1e-5, guidance_width=16))
    before = tensors(other)
    with pytest.raises(OtherTrainingError, match="guidance_width, lr"):
        resume(tmp_path, other)
    assert all(torch.equal(before[name], value) for name, value in tensors(other).items())


def test_free_and_accepted_changes(tiny_recipe, batches, tmp_path):
    """How a batch is cut never matters; settings of the optimisation may change where that is asked for."""
    state = TrainState(tiny_recipe(batch=4))
    next(fit(state, Batches(batches.pairs, 4, 16)))
    save_checkpoint(tmp_path, state)
    assert resume(tmp_path, TrainState(tiny_recipe(batch=4, accumulate=2)))[0] is not None
    changed = TrainState(tiny_recipe(batch=4, lr=1e-5, steps=50, weight_decay=0.25))
    with pytest.raises(OtherTrainingError, match="lr.*accept-changes"):
        resume(tmp_path, changed)
    assert resume(tmp_path, changed, accept_changes=True)[0] is not None and changed.step == 1
    assert changed.optimizer.param_groups[0]["weight_decay"] == 0.25 and changed.learning_rate() == pytest.approx(1e-5)
    with pytest.raises(OtherTrainingError, match="guidance_width"):
        resume(tmp_path, TrainState(tiny_recipe(batch=4, guidance_width=16)), accept_changes=True)


def test_other_data_is_refused(tiny_recipe, tmp_path):
    state = TrainState(tiny_recipe())
    state.data = {"name": "3 pairs", "manifest_sha256": "a"}
    save_checkpoint(tmp_path, state)
    other = TrainState(tiny_recipe())
    other.data = {"name": "3 pairs", "manifest_sha256": "b"}
    with pytest.raises(OtherTrainingError, match="manifest_sha256 is 'b' and was 'a'"):
        resume(tmp_path, other)
    assert resume(tmp_path, other, accept_changes=True)[0] is not None
    other.data = state.data | {"held_out": "the last sequence"}
    with pytest.raises(OtherTrainingError, match="held_out"):
        resume(tmp_path, other)
    assert resume(tmp_path, TrainState(tiny_recipe()))[0] is not None, "who says nothing of the data is not asked"


def other_weights(state: TrainState) -> dict:
    return state_dict(state) | {"model": {"w": torch.zeros(2)}}


def other_moments(state: TrainState) -> dict:
    return state_dict(state) | {"optimizer": {"state": {}, "param_groups": []}}


FOREIGN = {
    "a list": lambda state: [1, 2],
    "other keys": lambda state: {"model": {}, "epoch": 3},
    "a tensor": lambda state: torch.zeros(3),
    "an unknown setting": lambda state: state_dict(state) | {"recipe": {"network": {"depth": 3}, "training": {}}},
    "other weights": other_weights,
    "another optimiser": other_moments,
    "nonsense": lambda state: dict.fromkeys(state_dict(state), 5),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_passed_over_and_never_pushes_ours_out(tiny_recipe, tmp_path, name):
    state = TrainState(tiny_recipe())
    foreign = tmp_path / "checkpoint-99999999.pt"
    torch.save(FOREIGN[name](state), foreign)
    (tmp_path / "checkpoint-best.pt").write_text("a friend's")
    for step in (1, 2, 3):
        state.step = step
        save_checkpoint(tmp_path, state)
    fresh = TrainState(tiny_recipe())
    before = tensors(fresh)
    path, passed_over = resume(tmp_path, fresh)
    assert path.name == "checkpoint-00000003.pt" and fresh.step == 3
    (sentence,) = passed_over
    assert foreign.name in sentence and "no whole checkpoint" in sentence
    assert foreign.exists() and (tmp_path / "checkpoint-best.pt").exists()
    assert [int(p.stem[-8:]) for p in checkpoints(tmp_path)] == [2, 3, 99999999]
    assert all(torch.equal(before[k], v) for k, v in tensors(fresh).items())


def test_a_damaged_one_does_not_count_as_one_of_two(tiny_recipe, tmp_path):
    state = TrainState(tiny_recipe())
    for step in (4, 6):
        state.step = step
        save_checkpoint(tmp_path, state)
    (tmp_path / "checkpoint-00000006.pt").write_bytes(b"torn")
    state.step = 7
    save_checkpoint(tmp_path, state)
    assert is_whole(tmp_path / "checkpoint-00000004.pt"), "the only good one beside the newest"
    state.step = 8
    save_checkpoint(tmp_path, state)
    assert [int(p.stem[-8:]) for p in checkpoints(tmp_path)] == [7, 8]


def test_a_spoilt_state_is_not_saved(tiny_recipe, tmp_path):
    state = TrainState(tiny_recipe())
    state.step = 5
    save_checkpoint(tmp_path, state)
    state.step = 6
    state.note_if_not_finite(torch.tensor(float("inf")))
    state.step = 7
    state.note_if_not_finite(torch.tensor(1.0))
    with pytest.raises(NotFiniteError, match="at step 6"):
        save_checkpoint(tmp_path, state)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-00000005.pt"]


HOLD = """
import sys, time
from tinymsg.training.checkpoint import training_lock
with training_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_holds_until_its_process_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {process.pid} on"), training_lock(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    for _ in range(2):  # and again: it is let go of
        with training_lock(tmp_path):
            assert (tmp_path / HOLDER).exists()
        assert not (tmp_path / HOLDER).exists()

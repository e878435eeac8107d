"""Several processes learn what one does: on one machine, on two, with accumulated gradients; none is left hanging."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_training import Real, environment

from tinymsg.training import parallel

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of torch has no torch.distributed"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TINY = [
    "widths=16,16",
    "scales=1",
    "guidance_width=8",
    "guidance_blocks=1",
    "crop=16",
    "batch=4",
    "warmup=0",
    "precision=fp32",
    "content_count=8",
]


@pytest.fixture
def start():
    """start(*command, cwd=..., **environment) -> Popen; what still runs at the end is killed, workers too."""
    started = []

    def make(*command: str, cwd: Path, **more: str) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                command,
                cwd=cwd,
                env=environment() | more,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield make
    for process in started:
        if process.poll() is None:
            Real().kill(process)
        process.stdout.close()


def of_two(rank: int, port: int) -> dict[str, str]:
    """The variables by which torchrun tells one of two processes where they meet."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return meeting | {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": str(rank)}


WORKER = """
import sys, torch, warnings
from pathlib import Path
from tinymsg.cli.sources import open_data
from tinymsg.model import Recipe
from tinymsg.train import TrainState, fit
from tinymsg.training.parallel import (
    from_first, highest, join_processes, leave_processes, mean_over_processes, rank_and_processes, training_network
)
torch.set_num_threads(1)
warnings.filterwarnings("error", category=FutureWarning)
device = join_processes(torch.device("cpu"))
rank, processes = rank_and_processes()
tiny = Recipe().change(widths=(16, 16), scales=(1,), crop=16, batch=4, steps=3, warmup=0, guidance_width=8,
                       guidance_blocks=1, content_count=8, precision="fp32")
arms = {"guided": {}, "control": {"target": "none"}, "plain": {"scales": ()},
        "regression": {"scales": (), "kind": "regression"}, "structure": {"inject": "structure", "stop_gradient": True}}
out = {}
for arm, changes in arms.items():
    for accumulate in (1, 2):
        state = TrainState(tiny.change(accumulate=accumulate, **changes))
        state.share = rank, processes
        network, exchanges = training_network(state), []
        if processes > 1:
            def count(_, bucket):
                exchanges.append(1)
                work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
                return work.get_future().then(lambda f: f.value()[0])
            network.register_comm_hook(None, count)
        records = [r.to_dict() for r in fit(state, open_data(state.recipe, device)[0], network=network)]
        out[arm, accumulate] = records, state.model.state_dict(), len(exchanges)
if processes > 1:
    assert from_first(lambda: f"said by {rank}") == "said by 0" and highest(10 + rank) == 11
    assert mean_over_processes(torch.tensor([1.0 + rank, rank])).tolist() == [1.5, 0.5]
    def fails(error):
        raise error
    for error in (ValueError("no such folder"), KeyError("lr"), FileNotFoundError(2, "no such file")):
        try:
            from_first(lambda: fails(error))
        except type(error) as raised:
            assert str(raised) == str(error) and (raised is error) == (rank == 0)
        else:
            raise AssertionError("an error in the first process is one in all")
torch.save(out, Path(sys.argv[1]) / f"{rank}_of_{processes}.pt")
leave_processes()
"""


def test_two_processes_learn_what_one_does(tmp_path, start, free_port):
    """Each takes its share of the batch and of the noise, in one or two micro-batches: the same losses and weights.

    Of every arm: DDP refuses weights without a gradient. Gradients are exchanged once a step, however many
    micro-batches there are.
    """
    (tmp_path / "worker.py").write_text(WORKER)
    port = free_port()
    meetings = ({}, of_two(0, port), of_two(1, port))
    for process in [start(sys.executable, "worker.py", str(tmp_path), cwd=tmp_path, **where) for where in meetings]:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("0_of_1", "0_of_2", "1_of_2"))
    for case, (records, weights, _) in alone.items():
        (rows_0, weights_0, exchanges), (rows_1, weights_1, _) = first[case], second[case]
        for one, zero, two in zip(records, rows_0, rows_1, strict=True):
            for name in ("denoise", "guidance"):  # of each process its own share's
                zero[name] = two[name] = (zero[name] + two[name]) / 2
            assert zero == two == pytest.approx(one, rel=1e-3), case
        for name, value in weights.items():
            assert torch.equal(weights_0[name], weights_1[name]), case
            torch.testing.assert_close(weights_0[name], value, rtol=0, atol=2e-4)
        arm, accumulate = case
        assert exchanges == first[arm, 1][2] > 0, "no_sync: the first micro-batch must not be exchanged"


def test_without_torchrun():
    assert parallel.rank_and_processes() == (0, 1)
    assert parallel.join_processes(torch.device("cpu")) == torch.device("cpu")
    assert parallel.from_first(lambda: 7) == 7 and parallel.highest(3) == 3
    with pytest.raises(ValueError, match="as it was"):
        parallel.from_first(lambda: (_ for _ in ()).throw(ValueError("as it was")))


def train(out: str, *more: str, steps: int = 4) -> list[str]:
    return [
        "-m",
        "tinymsg",
        "train",
        "--out",
        out,
        "--device",
        "cpu",
        "--log-every",
        "1",
        "--save-every",
        "2",
        *more,
        "--set",
        f"steps={steps}",
        *TINY,
    ]


def losses(path: Path) -> np.ndarray:
    return np.loadtxt(path / "log.csv", delimiter=",", skiprows=1)


def test_more_processes_than_gpus(monkeypatch):
    """Said by those that have none; torchrun then ends the others."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    for count, advice in ((2, "--nproc-per-node 2"), (0, "--device cpu")):
        monkeypatch.setattr(torch.accelerator, "device_count", lambda count=count: count)
        with pytest.raises(ValueError, match=advice):
            parallel.join_processes(torch.device("cuda"))


@pytest.mark.course
def test_two_machines_and_another_number_of_processes(tmp_path, start, free_port):
    """Two torchruns that meet on 127.0.0.1 are two machines; what they began one process completes, and vice versa."""
    alone = start(sys.executable, *train("alone"), cwd=tmp_path)
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    # Each has its own folder, as machines without a shared disk: the second writes nothing and is told what the first
    # has read
    (tmp_path / "machine_1").mkdir()
    running = [
        start(*TORCHRUN, *nodes, "--node-rank", str(i), *train("two"), cwd=tmp_path / ("machine_1" if i else ""))
        for i in (0, 1)
    ]
    for process in (alone, *running):
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=2e-4)
    assert not list((tmp_path / "machine_1").rglob("*.csv"))
    # Resumed at step 2: what two began by one, what one began by two
    for name in ("two", "alone"):
        (tmp_path / name / "checkpoint-00000004.pt").unlink()
    one = start(sys.executable, *train("two"), cwd=tmp_path)
    two = start(
        *TORCHRUN, "--standalone", "--nproc-per-node", "2", *train("alone", "--timeout-minutes", "3"), cwd=tmp_path
    )
    for process in (one, two):
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0 and said.count("resuming from") == 1, said
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=2e-4)
    assert len(losses(tmp_path / "two")) == 4


@pytest.mark.course
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_of_two(tmp_path, start, free_port, number):
    """SIGTERM to one: both agree on a step, one checkpoint, the end. SIGKILL to one: the other ends with a sentence.

    Without torchrun, which would end the survivor: it has to notice by itself.
    """
    port = free_port()
    running = [start(sys.executable, *train("out", steps=5000), cwd=tmp_path, **of_two(rank, port)) for rank in (0, 1)]
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("checkpoint-*.pt")):
        assert time.monotonic() < deadline and running[0].poll() is running[1].poll() is None
        time.sleep(0.05)
    running[1].send_signal(number)
    first, _ = running[0].communicate(timeout=120)
    second, _ = running[1].communicate(timeout=120)
    if number == signal.SIGTERM:
        assert "SIGTERM" in first, first
        assert running[0].returncode == running[1].returncode == 143, first + second
        step = int(first.split("stopped at step ")[1].split()[0])
        assert (tmp_path / "out" / f"checkpoint-{step:08d}.pt").exists()
    else:
        assert "another process of this training" in first and "Traceback" not in first.split("tinymsg: ")[0], first
        assert running[0].returncode not in (0, -signal.SIGKILL)

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

WORKER = """
import sys, torch
from pathlib import Path
from tinymsg import train
from tinymsg.model import Config
from tinymsg.processes import from_first, highest, join_processes, leave_processes, rank_and_processes
from tinymsg.training.runs import open_data
from tinymsg.train import TrainState, fit
torch.set_num_threads(1)
device = join_processes(torch.device("cpu"))
out = {}
for accumulate in (1, 2):
    config = Config(widths=(16, 16), scales=(1,), crop=16, batch=4, steps=3, warmup=0, guidance_width=8, guidance_blocks=1,
                    content_count=8, precision="fp32", accumulate=accumulate)
    state = TrainState(config)
    exchanges = []
    if rank_and_processes()[1] > 1:
        original = train._network
        def counted(*args):
            network = original(*args)
            def hook(_, bucket):
                exchanges.append(1)
                return torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])
            network.register_comm_hook(None, hook)
            return network
        train._network = counted
    records = [r.to_dict() for r in fit(state, open_data(config, device).batches)]
    out[accumulate] = (records, state.model.state_dict(), len(exchanges))
    if rank_and_processes()[1] > 1:
        train._network = original
rank = rank_and_processes()[0] if torch.distributed.is_initialized() else "alone"
if rank != "alone":
    assert from_first(lambda: f"said by {rank}") == "said by 0" and highest(10 + rank) == 11
    def fails(error):
        raise error
    for error, there, said in ((ValueError("no such folder"), ValueError, "no such folder"),
                               (KeyError("lr"), KeyError, "KeyError: 'lr'")):
        try:
            from_first(lambda: fails(error))
        except there if rank == 0 else ValueError as raised:
            assert raised is error if rank == 0 else str(raised) == said
        else:
            raise AssertionError("an error in the first process is one in all")
torch.save(out, Path(sys.argv[1]) / f"{rank}.pt")
leave_processes()
"""


def test_two_processes_learn_what_one_does(tmp_path):
    """Each takes its share of the batch and of the noise, in one or two micro-batches: losses and weights are one process's.

    Gradients are exchanged once a step, however many micro-batches there are.
    """
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    for start in ([*TORCHRUN, "--standalone", "--nproc-per-node=2"], [sys.executable]):
        done = subprocess.run(
            [*start, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment()
        )
        assert done.returncode == 0, done.stderr
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", "0", "1"))
    for accumulate in (1, 2):
        (records, weights, _), (rows_0, weights_0, exchanges), (rows_1, weights_1, _) = (
            part[accumulate] for part in (alone, first, second)
        )
        assert rows_0 == rows_1 and all(torch.equal(weights_0[name], weights_1[name]) for name in weights_0)
        for one, two in zip(records, rows_0, strict=True):
            assert two == pytest.approx(one, rel=1e-3)
        for name, value in weights.items():
            torch.testing.assert_close(weights_0[name], value, rtol=0, atol=2e-4)
    assert first[1][2] == first[2][2] > 0, "no_sync: the first micro-batch must not be exchanged"


def test_without_torchrun():
    assert parallel.rank_and_processes() == (0, 1)
    assert parallel.join_processes(torch.device("cpu")) == torch.device("cpu")
    assert parallel.from_first(lambda: 7) == 7 and parallel.highest(3) == 3
    with pytest.raises(ValueError, match="as it was"):
        parallel.from_first(lambda: (_ for _ in ()).throw(ValueError("as it was")))


@pytest.fixture
def start():
    """start(*command, cwd=..., **environment) -> Popen; whatever still runs at the end of the test is killed, workers too."""
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


def test_two_machines_and_another_number_of_processes(tmp_path, start, free_port):
    """Two torchruns that meet on 127.0.0.1 are two machines; what they began one process completes, and the other way round."""
    alone = start(sys.executable, *train("alone"), cwd=tmp_path)
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    # Each has its own folder, as machines without a shared disk: the second writes nothing and is told what the first has read
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


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_of_two(tmp_path, start, free_port, number):
    """SIGTERM to one: both agree on a step, one checkpoint, the end. SIGKILL to one: the other ends with a sentence.

    Without torchrun, which would end the survivor: it has to notice by itself. Its variables are set here as torchrun sets them.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    running = [
        start(sys.executable, *train("out", steps=5000), cwd=tmp_path, RANK=str(rank), **meeting) for rank in (0, 1)
    ]
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("checkpoint-*.pt")):
        assert time.monotonic() < deadline and running[0].poll() is running[1].poll() is None
        time.sleep(0.05)
    running[1].send_signal(number)
    first, _ = running[0].communicate(timeout=120)
    second, _ = running[1].communicate(timeout=120)
    if number == signal.SIGTERM:
        assert "by SIGTERM, checkpoint written" in first, first
        assert running[0].returncode == running[1].returncode == 143, first + second
        step = int(first.split("stopped at step ")[1].split()[0])
        assert (tmp_path / "out" / f"checkpoint-{step:08d}.pt").exists()
    else:
        assert "the first process stops: another process of this training ended or does not answer" in first, first
        assert "Traceback" not in first.split("tinymsg: ")[0] and running[0].returncode not in (0, -signal.SIGKILL)

"""The whole road on a miniature of GoPro: download, unpack, verify, pack, train, kill, resume, evaluate, table."""

import signal
import time

import pytest
from bad_server import serve
from kill_training import EXACT, TINY, Real
from script_cases import mirrors, published, small  # noqa: F401

from tinymsg.cli import main
from tinymsg.evaluate import read_results

STEPS = 50


def trained(trainings, command, log, kill_at=None):
    """How often the command was started until it was complete; kill_at: killed once its log has come so far."""
    out, starts = log.with_suffix(""), 0
    while starts < 5:
        process = trainings.start([*command, "--out", str(out)], log)
        starts += 1
        deadline = time.monotonic() + 240
        while trainings.poll(process) is None and time.monotonic() < deadline:
            rows = (out / "log.csv").read_text().count("\n") if (out / "log.csv").exists() else 0
            if kill_at is not None and rows > kill_at:
                assert trainings.kill(process) == -signal.SIGKILL, "it had ended before it could be killed"
                kill_at = None
                break
            time.sleep(0.01)
        else:
            if trainings.poll(process) is None:
                trainings.kill(process)
            assert trainings.poll(process) == 0, log.read_text()
            return starts
    pytest.fail(log.read_text())


@pytest.mark.course
def test_from_a_bad_server_to_the_papers_table(tmp_path, small, published, capsys):  # noqa: F811
    data, folder = published("gopro"), tmp_path / "data"
    with serve({name: path.read_bytes() for name, path in data.archives.items()}) as server:
        assert small("gopro", **mirrors(server, data, "html", "drops"))("--folder", folder) == 0, capsys.readouterr()
    assert "tinymsg pack gopro" in capsys.readouterr().out

    root = ["--root", str(folder)]
    assert main(["pack", "gopro", *root, "--incomplete", "--workers", "1", "--verify"]) == 0, capsys.readouterr()

    train = ["train", "--data", "gopro", *root, "--device", "cpu", "--log-every", "1", "--save-every", "7"]
    train += ["--validate-every", "20", "--validation-count", "2", "--validation-size", "32"]
    train += ["--set", f"steps={STEPS}", *TINY]
    assert trained(Real(), train, tmp_path / "whole.log") == 1
    # Early: after its first checkpoint, far from its end
    assert trained(Real(), train, tmp_path / "torn.log", kill_at=8) == 2
    assert "resuming from" in (tmp_path / "torn.log").read_text()
    for name in EXACT:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "torn" / name).read_bytes(), name
    assert read_results(tmp_path / "torn/run.json")["images_seen"] == 4 * STEPS

    table = ["paper", "--weights", f"mine={tmp_path}/torn/weights.safetensors", "--sets", "gopro", "hide", *root]
    table += ["--incomplete", "--metrics", "psnr", "ssim", "--steps", "2", "--max-noise", "0.9", "--samples", "2"]
    table += ["--device", "cpu", "--out", str(tmp_path / "paper")]
    assert main(table) == 0, capsys.readouterr()
    text = (tmp_path / "paper/table.md").read_text()
    assert "mine" in text and "ours" in text and "Ren 2023" in text and "published" in text
    assert "data_scripts/hide.py" in text, "what is not there is said, not guessed"

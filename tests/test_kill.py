"""A training survives any kill: pack, train, SIGKILL, resume; the losses and weights of one that was left alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from kill_training import ROOT, environment
from miniatures import make_gopro

pytestmark = [pytest.mark.course, pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A miniature GoPro, packed from the command line."""
    folder = tmp_path_factory.mktemp("data")
    make_gopro(folder, train=6, frames=2, size=(40, 32))
    done = subprocess.run(
        [sys.executable, "-m", "tinymsg", "pack", "gopro", "--incomplete", "--workers", "1", "--root", str(folder)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder / "packed/gopro-train"


def kill(how: str, folder: Path, data: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/kill_training.py"), str(folder), str(data), "--how", how, *options],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done.stdout


def test_killed_twice_at_the_worst_moments(packed, tmp_path):
    """Half a checkpoint, not yet synced, not yet named, the older one not yet gone, half a row, half a trimmed log."""
    assert kill("points", tmp_path, packed, "--kills", "2").count("equal") == 6


def test_kills_of_trainings_from_the_command_line(packed, tmp_path):
    said = kill("real", tmp_path, packed, "--kills", "10", "--steps", "50")
    assert "every completed training equals the whole one" in said


def test_kills_of_forked_trainings(packed, tmp_path):
    said = kill("fast", tmp_path, packed, "--kills", "40", "--steps", "50")
    assert "every completed training equals the whole one" in said
    assert "packed pairs of gopro" in (tmp_path / "messages.txt").read_text()


def test_kills_under_torchrun(packed, tmp_path):
    said = kill("two", tmp_path, packed, "--kills", "5", "--steps", "50")
    assert "every completed training equals the whole one" in said

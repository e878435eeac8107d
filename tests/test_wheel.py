"""A wheel, installed where nothing else is but what it says it needs, deblurs a picture; and a lesson runs with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import course
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.course


def run(*command, folder: Path, **more) -> subprocess.CompletedProcess:
    """A command in `folder`, with nothing in its environment that leads back to this repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
    return subprocess.run([*map(str, command)], cwd=folder, env=kept, capture_output=True, text=True, **more)


def needed(distribution: metadata.Distribution) -> set[str]:
    """Names of the distributions that one needs without any extra, and of those that they need."""
    found, waiting = set(), [(distribution, set())]
    while waiting:
        distribution, extras = waiting.pop()
        for requirement in map(Requirement, distribution.requires or ()):
            marker, wanted = requirement.marker, canonicalize_name(requirement.name)
            fits = not marker or any(marker.evaluate({"extra": extra}) for extra in extras or ("",))
            if fits and wanted not in found:
                found.add(wanted)
                waiting.append((metadata.distribution(wanted), requirement.extras))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no stale build folder gets in; without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("tinymsg", "notebooks/results"):  # tinymsg/results is a link to the latter
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = run(sys.executable, "-c", build, folder=source)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment with the wheel alone; returns the folder of its packages."""
    assert run(sys.executable, "-m", "venv", folder, folder=folder).returncode == 0
    done = run(folder / "bin/python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel and links to its dependencies: torch is not installed a second time."""
    folder = tmp_path_factory.mktemp("environment")
    site = install(wheel, folder)
    (ours,) = metadata.distributions(name="tinymsg", path=[str(site)])
    for name in needed(ours):
        for top in {file.parts[0] for file in metadata.files(name)} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(metadata.distribution(name).locate_file(top))
    return folder


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {
        (Path(folder) / file).relative_to(ROOT).as_posix()
        for folder, _, files in os.walk(ROOT / "tinymsg", followlinks=True)
        for file in files
        if not folder.endswith("__pycache__")
    }
    assert names == there


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_picture_is_deblurred_with_the_wheels_own_weights(environment, tmp_path):
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(tmp_path / "blurry.png")
    command = (environment / "bin/tinymsg", "deblur", "blurry.png", "--device", "cpu", "--steps", "1", "-o")
    done = run(*command, "sharp.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sharp.png") as picture:
        assert (picture.size, picture.mode) == ((48, 40), "RGB")

    code = "import tinymsg, importlib.util as u; print(tinymsg.__file__, u.find_spec('torchvision'))"
    where, torchvision = run(environment / "bin/python", "-c", code, folder=tmp_path).stdout.split()
    assert environment in Path(where).parents
    assert torchvision == "None"

    weights = Path(where).parent / "weights"
    weights.rename(weights.with_name("elsewhere"))
    try:
        assert run(*command, "again.png", folder=tmp_path).returncode != 0
        assert not (tmp_path / "again.png").exists()
    finally:
        weights.with_name("elsewhere").rename(weights)


# --- lessons, each alone in a folder ------------------------------------------------------------------------

ALONE = course.lessons()[:1]
RUN = """
import papermill, sys
papermill.execute_notebook(sys.argv[1], "out.ipynb", {"PROFILE": "smoke"}, kernel_name="python3", progress_bar=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="bin/")
@pytest.mark.parametrize("lesson", ALONE, ids=lambda path: path.stem)
def test_a_lesson_runs_alone_with_the_wheel(lesson, wheel, tmp_path):
    environment, folder = tmp_path / "environment", tmp_path / "empty"
    environment.mkdir()
    folder.mkdir()
    site = install(wheel, environment)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # the course's packages; the wheel stands before
    shutil.copy(lesson, folder)
    done = run(environment / "bin/python", "-c", "import tinymsg; print(tinymsg.__file__)", folder=folder)
    assert site in Path(done.stdout.strip()).parents
    done = run(environment / "bin/python", "-c", RUN, lesson.name, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]

"""Rules of the house, enforced."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LIBRARY = ROOT / "tinymsg"
# The method, in the order of the lessons: each file imports only from those before it, and from no room
METHOD = (
    "__init__",
    "machine",
    "rng",
    "scenes",
    "blur",
    "data",
    "schedule",
    "unet",
    "guidance",
    "model",
    "train",
    "sample",
    "evaluate",
    "__main__",
)
ROOMS = ("training", "datasets", "restoring", "course", "studies", "paper", "interop", "cli")
USE_ALL = ("course", "cli")  # the other rooms import the method alone
PATHS = sorted(LIBRARY.rglob("*.py"))
SHORT = ("schedule", "unet", "guidance", "train", "sample")  # files that are read in one sitting


def name(path: Path) -> str:
    """paper.niqe for tinymsg/paper/niqe.py."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


def room(path: Path) -> str:
    """The room of a file; "" for the method."""
    return path.relative_to(LIBRARY).parts[0] if path.parent != LIBRARY else ""


def imported(path: Path) -> set[str]:
    """What a file imports from the library, anywhere in it: {"model", "paper.niqe"}; a room itself by its name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("tinymsg.") for a in node.names if a.name.split(".")[0] == "tinymsg"}
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            package = path.relative_to(LIBRARY).parts[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        elif (node.module or "").split(".")[0] == "tinymsg":
            base = node.module.removeprefix("tinymsg").lstrip(".")
        else:
            continue
        found |= {f"{base}.{a.name}".lstrip(".") for a in node.names} if base in ("", *ROOMS) else {base}
    return found - {"__version__"}


def lines(*paths: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_the_method_is_these_files_and_the_rooms_are_those():
    assert {path.stem for path in LIBRARY.glob("*.py")} == set(METHOD) and len(METHOD) == 14
    assert {path.parent.name for path in PATHS} - {"tinymsg"} == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in PATHS if not room(path)], ids=name)
def test_the_method_imports_only_what_stands_before(path):
    if doors := {"__main__": {"cli"}, "__init__": {"model"}}.get(path.stem):  # the command line; tinymsg.pretrained
        assert {place.split(".")[0] for place in imported(path)} == doors
    else:
        assert imported(path) <= set(METHOD[: METHOD.index(path.stem)])
    if path.stem in ("train", "sample", "evaluate"):  # guards this test itself: imports are found
        assert "model" in imported(path)


@pytest.mark.parametrize("path", [path for path in PATHS if room(path) and room(path) not in USE_ALL], ids=name)
def test_a_room_imports_the_method_and_no_other_room(path):
    outside = {place for place in imported(path) if place.split(".")[0] != room(path)}
    if name(path) == "studies.running":  # its trainings survive a kill
        outside -= {"training.checkpoint"}
    if name(path) == "studies.__main__":  # a command line
        outside = {place for place in outside if place.split(".")[0] != "cli"}
    assert outside <= set(METHOD) - {"__main__"}
    if name(path) == "paper.report":  # guards this test itself
        assert "evaluate" in outside or any(place.startswith("paper.") for place in imported(path))


def test_rooms_that_use_all_do_not_use_each_other():
    for path in PATHS:
        if room(path) == "course":
            assert not any(place.split(".")[0] == "cli" for place in imported(path)), name(path)


@pytest.mark.parametrize("which", ROOMS)
def test_a_room_says_what_is_in_it(which):
    here = {path.stem for path in (LIBRARY / which).glob("*.py")} - {"__init__"}
    said = ast.get_docstring(ast.parse((LIBRARY / which / "__init__.py").read_text()))
    if which == "cli":  # one file a command, told by --help
        assert said
    else:
        assert set(re.findall(r"^ *(\w+)  ", said, flags=re.M)) == here


def test_sizes():
    """A compact house: by deleting and reusing, not by golfing."""
    for stem in SHORT:
        assert lines(LIBRARY / f"{stem}.py") <= 200, stem
    assert lines(*LIBRARY.glob("*.py")) <= 2904
    assert lines(*PATHS) <= 9700  # 1,630 of them restore any photograph, 270 of these on a page; 650 are the trial
    assert lines(*(ROOT / "data_scripts").glob("*.py")) <= 700
    assert max(map(lines, PATHS)) <= 535  # blur.py: the whole camera


def test_importing_loads_neither_figures_nor_metrics():
    figures, metrics = (
        {"matplotlib", "ipywidgets", "IPython"},
        {"lpips", "torchmetrics", "torchvision", "torch_fidelity"},
    )
    heavy = figures | metrics | {"skimage", "scipy", "cv2"}
    modules = "evaluate, tinymsg.paper.report, tinymsg.paper.choose, tinymsg.studies.toy, tinymsg.course.checks"
    code = f"import sys, tinymsg.{modules}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stderr


def test_help_needs_no_torch():
    code = "import sys, tinymsg.cli as c; c.parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_every_command_is_declared():
    from tinymsg.cli import COMMANDS

    declared = {module.__name__.split(".")[-1] for module in COMMANDS}
    files = {path.stem for path in (LIBRARY / "cli").glob("*.py")}
    assert declared <= files and all(hasattr(module, "add") for module in COMMANDS)
    commands = {p.stem for p in (LIBRARY / "cli").glob("*.py") if re.search(r"^def add\(", p.read_text(), flags=re.M)}
    assert commands == declared


def test_only_the_course_draws():
    for path in PATHS:
        if room(path) == "course":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("matplotlib", "ipywidgets", "IPython") for n in names), name(path)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_the_device_follows_the_input(path):
    code = path.read_text()
    if name(path) == "cli.shared":
        code = code.replace("cuda:1", "")  # an example in --help
    for forbidden in (r"\.cuda\(", r"cuda:\d", r"device=[\"']cuda"):
        assert not re.search(forbidden, code)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_what_is_public_is_described(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    commands = ("add", "run") if room(path) == "cli" else ()  # described where they are called from
    assert not [node.name for node in public if not ast.get_docstring(node) and node.name not in commands]
    if not room(path):  # `from tinymsg import x` is clear
        assert path.stem not in {node.name for node in public} or path.stem == "evaluate"


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_no_bare_except_no_star_no_print_in_the_library(path):
    may_print = room(path) in ("cli", "course")
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), node.lineno
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), node.lineno
        if isinstance(node, ast.Call) and not may_print:
            to_a_file = any(keyword.arg == "file" for keyword in node.keywords)
            assert getattr(node.func, "id", "") != "print" or to_a_file, node.lineno


def test_a_file_of_the_method_has_its_tests():
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert {stem.strip("_") for stem in METHOD} - {"init"} <= tested

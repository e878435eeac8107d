"""Rules of the house, enforced."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "tinymsg"
MODULES = sorted(LIBRARY.glob("*.py"))
COMMANDS = sorted((LIBRARY / "commands").glob("*.py"))
# Each module imports only from those before it
ORDER = ("rng", "scenes", "blur", "data", "datasets", "packed", "packing", "schedule", "unet", "guidance", "results", "model",
         "processes", "train", "checkpoint", "estimate", "sample", "evaluate", "validation", "runs",
         "fid", "niqe", "align", "published", "ledger", "paper", "choose", "report",
         "shift", "toy", "studies", "checks", "explore", "monitor", "commands", "__main__")  # fmt: skip


def trees(*parts: str) -> list[tuple[str, ast.Module]]:
    return [(path.stem, ast.parse(path.read_text())) for path in MODULES if not parts or path.stem in parts]


def imported(tree: ast.Module) -> set[str]:
    """Modules of the library that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinymsg"):
            names |= {node.module.removeprefix("tinymsg").lstrip(".")}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("tinymsg.") for alias in node.names if alias.name.startswith("tinymsg")}
    return names


def test_every_module_has_its_place():
    assert {path.stem for path in MODULES} | {"commands"} == {"__init__", *ORDER}


@pytest.mark.parametrize("name", [name for name in ORDER if name != "commands"])
def test_a_module_imports_only_from_those_before_it(name):
    ((_, tree),) = trees(name)
    before = {*ORDER[: ORDER.index(name)], "__version__"}
    assert imported(tree) <= before
    if name in ("train", "sample", "evaluate"):  # guards this test itself: imports are found
        assert "model" in imported(tree)


def test_importing_loads_neither_figures_nor_metrics():
    heavy = {"matplotlib", "lpips", "ipywidgets", "IPython", "torchmetrics", "torchvision", "skimage", "scipy", "cv2",
             "torch_fidelity"}  # fmt: skip
    modules = "tinymsg.evaluate, tinymsg.report, tinymsg.choose, tinymsg.toy, tinymsg.checks"
    code = f"import sys, {modules}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stderr


def test_help_needs_no_torch():
    code = "import sys, tinymsg.__main__ as m; m.parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_only_explore_draws():
    for name, tree in trees():
        if name in ("explore", "monitor"):
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("matplotlib", "ipywidgets", "IPython") for n in names), name


@pytest.mark.parametrize("path", MODULES + COMMANDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_device_follows_the_input(path):
    text = path.read_text()
    code = text.replace("cuda:1", "") if path.stem == "shared" else text  # an example in --help
    for forbidden in (r"\.cuda\(", r"cuda:\d", r"device=[\"']cuda"):
        assert not re.search(forbidden, code)


@pytest.mark.parametrize("path", MODULES + COMMANDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_what_is_public_is_described(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    without = [node.name for node in public if not ast.get_docstring(node)]
    assert not without
    assert path.stem not in {node.name for node in public} or path.stem == "evaluate"  # `from tinymsg import x` is clear


@pytest.mark.parametrize("path", MODULES + COMMANDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_module_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 450


@pytest.mark.parametrize("path", MODULES + COMMANDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_bare_except_no_star_no_print_in_the_library(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), node.lineno
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), node.lineno
        if path not in COMMANDS and path.stem not in ("__main__", "checks", "explore") and isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") != "print", node.lineno


def test_a_module_has_its_tests():
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    untested = {name.strip("_") for name in ORDER} - tested
    assert untested <= {"toy", "checks", "explore", "commands"}  # the lessons run the first three, test_main the last


def test_every_command_is_declared_and_light():
    """Each file of commands/ is on the command line, and importing it loads nothing heavy."""
    from tinymsg.__main__ import COMMANDS as declared

    assert {path.stem for path in COMMANDS} - {"__init__", "shared"} == {module.__name__.split(".")[-1] for module in declared}
    for path in COMMANDS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"argparse", "contextlib", "os", "signal", "sys"}, path.name
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("pathlib", "shared", "collections.abc"), path.name

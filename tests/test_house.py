"""Rules of the house, enforced."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "tinymsg"
PACKAGES = {  # each file of a package imports only from those before it, and from what stands before the package
    "datasets": ("layouts", "packed", "packing"),
    "training": ("checkpoint", "estimate", "validation", "runs", "monitor"),
    "paper": ("fid", "niqe", "align", "published", "ledger", "protocol", "choose", "report"),
}
MODULES = sorted([*LIBRARY.glob("*.py"), *(path for package in PACKAGES for path in (LIBRARY / package).glob("*.py"))])
COMMANDS = sorted((LIBRARY / "commands").glob("*.py"))
# Each module imports only from those before it
ORDER = (
    "processes",
    "rng",
    "scenes",
    "blur",
    "data",
    "datasets",
    "schedule",
    "unet",
    "guidance",
    "results",
    "model",
    "train",
    "sample",
    "evaluate",
    "steps",
    "shift",
    "toy",
    "pictures",
    "studies",
    "checks",
    "explore",
    "live",
    "myphoto",
    "training",
    "paper",
    "commands",
    "__main__",
)


PLACES = [
    ".".join(place)
    for name in ORDER
    for place in ([(name, file) for file in PACKAGES[name]] if name in PACKAGES else [(name,)])
]


def place(path: Path) -> str:
    """paper.niqe for tinymsg/paper/niqe.py."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Places in the library that a module imports from, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.relative_to(LIBRARY).parts[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tinymsg":
            base = node.module.removeprefix("tinymsg").lstrip(".")
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("tinymsg.") for alias in node.names if alias.name.startswith("tinymsg")}
            continue
        else:
            continue
        inside = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
        names |= inside if base in ("", *PACKAGES) else {base}
    return {"commands" if name.split(".")[0] == "commands" else name for name in names}


def test_every_module_has_its_place():
    here = {place(path) for path in MODULES} - {"__init__", *(f"{package}.__init__" for package in PACKAGES)}
    assert here | {"commands"} == set(PLACES)


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=place)
def test_a_module_imports_only_from_those_before_it(path):
    before = {*PLACES[: PLACES.index(place(path))], "__version__"}
    assert imported(path) <= before
    if path.stem in ("sample", "evaluate", "runs"):  # guards this test itself: imports are found
        assert "model" in imported(path)
    if path.stem == "report":
        assert "paper.ledger" in imported(path)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_names_its_files_in_their_order(package):
    text = ast.get_docstring(ast.parse((LIBRARY / package / "__init__.py").read_text()), clean=False)
    assert tuple(re.findall(r"^    (\w+) ", text, flags=re.M)) == PACKAGES[package]


def test_importing_loads_neither_figures_nor_metrics():
    heavy = {
        "matplotlib",
        "lpips",
        "ipywidgets",
        "IPython",
        "torchmetrics",
        "torchvision",
        "skimage",
        "scipy",
        "cv2",
        "torch_fidelity",
    }
    modules = "tinymsg.evaluate, tinymsg.paper.report, tinymsg.paper.choose, tinymsg.toy, tinymsg.checks"
    code = f"import sys, {modules}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stderr


def test_help_needs_no_torch():
    code = "import sys, tinymsg.__main__ as m; m.parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_only_explore_draws():
    for path in MODULES:
        if place(path) in ("explore", "live", "myphoto", "training.monitor"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("matplotlib", "ipywidgets", "IPython") for n in names), path


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
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    without = [node.name for node in public if not ast.get_docstring(node)]
    assert not without
    assert (
        path.stem not in {node.name for node in public} or path.stem == "evaluate"
    )  # `from tinymsg import x` is clear


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
    untested = {name.split(".")[-1].strip("_") for name in PLACES} - tested
    assert untested <= {"toy", "checks", "explore", "commands"}  # the lessons run the first three, test_main the last


def test_every_command_is_declared_and_light():
    """Each file of commands/ is on the command line, and importing it loads nothing heavy."""
    from tinymsg.__main__ import COMMANDS as declared

    assert {path.stem for path in COMMANDS} - {"__init__", "shared"} == {
        module.__name__.split(".")[-1] for module in declared
    }
    for path in COMMANDS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"argparse", "contextlib", "os", "signal", "sys"}, (
                    path.name
                )
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("pathlib", "shared", "collections.abc"), path.name

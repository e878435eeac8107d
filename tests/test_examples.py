"""The examples in the docstrings are true."""

import ast
import doctest
import importlib

import pytest
from conftest import ROOT

TEXTS = {path: path.read_text() for path in sorted((ROOT / "tinymsg").rglob("*.py"))}
PATHS = [path for path, text in TEXTS.items() if ">>>" in text]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_examples_are_true(path):
    """Read from the source: doctest's own finder does not look through the checks of conftest.py."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    runner, told = doctest.DocTestRunner(verbose=False), []
    for node in ast.walk(ast.parse(TEXTS[path])):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) else None
        if text and ">>>" in text:
            name = getattr(node, "name", path.stem)
            test = doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, str(path), node.body[0].lineno)
            runner.run(test, out=told.append)
    assert runner.tries > 0 and told == [], "".join(told)


def test_the_functions_that_are_used_most_have_an_example():
    assert len(PATHS) >= 8

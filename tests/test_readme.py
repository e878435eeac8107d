"""README, docs and CONTRIBUTING promise nothing that is not there, and every measured number is that of its file."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch

from tinymsg import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("[!i]*.md"))]  # index.md: the site's
TEXTS = [*GUIDES, ROOT / "CHANGELOG.md", *sorted((ROOT / "notebooks").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()

_spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tables)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives a file's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[str]:
    """Every line of the guides' code blocks that calls the command line or a script, without its comment."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", "\n".join(path.read_text() for path in GUIDES), flags=re.M | re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if re.match(r"(tinymsg|python|torchrun) ", line)})


@pytest.mark.parametrize("path", tables.TEXTS, ids=name_of)
def test_measured_numbers_are_those_of_the_files(path):
    text = path.read_text()
    assert tables.filled(text) == text, "run: python docs/tables.py"
    # To Markdown such a line is HTML: it would end its paragraph and show its asterisks
    assert not re.search(r"^<!-- [\w-]+ -->.", text, flags=re.M)


def test_every_block_that_can_be_written_is_shown():
    shown = {name for path in tables.TEXTS for name in re.findall(r"<!-- ([\w-]+) -->", path.read_text())}
    assert shown == set(tables.BLOCKS)


def test_an_altered_number_is_found(tmp_path):
    text = (ROOT / "docs/results.md").read_text()
    altered = re.sub(r"(?<=[+-]0\.)\d(?=\d* \[)", lambda digit: str(9 - int(digit[0])), text, count=1)
    assert altered != text
    assert tables.filled(altered) == text


def test_intervals_of_training_runs_are_students():
    mean, low, high = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(4.302653 / 3**0.5, abs=1e-5)  # of two degrees of freedom, from a printed table
    assert mean - low == pytest.approx(high - mean)


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 700


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_link_leads_somewhere(path):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            dead.append(link)
    assert dead == []


def test_the_readme_leads_to_every_lesson_and_text():
    links = set(re.findall(r"\]\(([^)#\s]+)", README.read_text()))
    wanted = [*TEXTS[1:], *sorted((ROOT / "notebooks").glob("0*.ipynb"))]
    assert [name_of(path) for path in wanted if name_of(path) not in links] == []


@pytest.mark.parametrize("line", commands())
def test_a_command_in_the_texts_is_one(line):
    words = shlex.split(line)
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        return
    cli.parser().parse_args(words[words.index("tinymsg") + 1 :])  # exits on what it does not know


def test_options_that_are_named_in_prose_exist():
    """Of commands: `tinymsg pack --verify`; the scripts' own options are tested with the scripts."""
    prose = "\n".join(without_code(path.read_text()) for path in GUIDES)
    found = re.findall(r"`tinymsg ([a-z]+)([^`]*)`", prose)
    known = {action.dest: action.choices for action in cli.parser()._actions}["command"]
    assert found
    for command, rest in found:
        options = set(re.findall(r"--[\w-]+", rest))
        assert options <= set(known[command]._option_string_actions), f"tinymsg {command}{rest}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, flags=re.M))
    named = {name for path in GUIDES for name in re.findall(r"`make ([\w-]+)", path.read_text())}
    assert named <= targets


def test_the_house_is_drawn_as_it_stands():
    map_ = (ROOT / "docs/design.md").read_text().split("```")
    drawn = re.findall(r"^  (\w+\.py|\w+/) ", "\n".join(map_[1::2]), flags=re.M)
    library = ROOT / "tinymsg"
    files = {path.name for path in library.glob("*.py")} - {"__init__.py"}
    rooms = {f"{path.name}/" for path in library.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert sorted(drawn) == sorted(files | rooms)


def test_python_in_the_texts_runs():
    blocks = [block for path in GUIDES for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)]
    assert blocks
    for block in blocks:
        names = {"x": torch.zeros(1, 3, 16, 16)}
        try:
            exec(block, names)
        except ModuleNotFoundError as error:
            assert error.name in ("deepinv", "diffusers")  # of no extra, or of one for tests alone
            continue
        assert names.get("y0_hat", names["x"]).shape == names["x"].shape

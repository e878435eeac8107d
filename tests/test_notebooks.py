"""The lessons run, hold what is committed, and are in order; and course.py says so when they are not."""

import ast
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import course
import nbformat
import nbformat.v4 as v4
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from tinymsg.course.photo import ONLY_DEFAULT

LESSONS = course.lessons()
NAMES = ("00_start", "01_blur", "02_icdpm", "03_guidance", "04_ablations", "05_evaluation", "06_today")
ALONE = LESSONS  # they run in any folder
TWICE = ("00_start", "04_ablations")  # these are run a second time; the others would take minutes
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def lesson_environment():
    with mock.patch.dict(os.environ):
        course.use_lesson_environment()
        os.environ[ONLY_DEFAULT] = "1"  # whatever photograph lies beside the lessons
        yield


# --- the lessons --------------------------------------------------------------------------------------------


def test_all_lessons_are_there():
    assert set(NAMES) <= {lesson.stem for lesson in LESSONS}


@each_lesson
def test_lesson_is_in_order(lesson):
    assert course.problems(lesson) == []


@each_lesson
def test_lesson_is_committed_clean(lesson):
    notebook = course.read(lesson)
    assert course.clean(notebook) == notebook, "run `course.py clean` on it"


@each_lesson
def test_lesson_closes_with_a_limitation_and_has_three_exercises(lesson):
    cells = course.read(lesson).cells
    assert (
        sum(bool(re.search(r"^#+ .*exercise", c.source, re.I | re.M)) for c in cells if c.cell_type == "markdown") >= 3
    )
    assert re.search("limit", cells[-1].source, re.I)


@pytest.mark.course
@pytest.mark.notebook
@pytest.mark.parametrize("lesson, results", [("04_ablations", "trial.json"), ("05_evaluation", "scores.json")])
def test_a_results_file_changed_by_one_digit_stops_the_lesson(lesson, results, tmp_path):
    shutil.copytree(course.HERE / "results", tmp_path / "results")
    path = tmp_path / "results" / results
    text = path.read_text()
    digit = [m.start() for m in re.finditer(r"(?<=\.)\d", text)][7]
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    notebook = course.read(course.HERE / f"{lesson}.ipynb")
    place = "import pathlib, tinymsg.evaluate\ntinymsg.evaluate.RESULTS = pathlib.Path('results')"
    notebook.cells.insert(1, v4.new_code_cell(place))
    nbformat.write(notebook, copy := tmp_path / "lesson.ipynb")
    result = course.execute(copy, tmp_path / "out.ipynb", {"PROFILE": "smoke"}, limit=120)
    assert f"{path.stem} is not as a command wrote it" in result.problem


@each_lesson
def test_results_are_read_by_the_reader_that_finds_changes(lesson):
    """Whatever file of numbers a lesson opens, a number changed by hand in it stops the lesson."""
    code = "\n".join(cell.source for cell in course.read(lesson).cells if cell.cell_type == "code")
    reader = r"""read_results\(["'](?:results/)?(\w+)(?:\.json)?["']\)"""
    assert all((course.HERE / "results" / f"{name}.json").exists() for name in re.findall(reader, code))
    assert not re.search(r"results\b.*\.json", re.sub(f"{reader}|#.*", "", code), re.I)


@pytest.mark.parametrize("lesson", ALONE, ids=lambda path: path.stem)
def test_a_lesson_reads_nothing_that_lies_beside_it(lesson):
    """It runs in any folder: what it names of the repository is in the package, and read from there."""
    texts = {
        node.value
        for cell in course.read(lesson).cells
        if cell.cell_type == "code" and "install" not in cell.metadata.get("tags", [])
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[\w.-]+[/.][\w./-]+", node.value)
    }
    beside = [text for text in texts for place in (course.HERE, course.HERE.parent) if (place / text).exists()]
    assert beside == []


@pytest.mark.parametrize("lesson", ALONE, ids=lambda path: path.stem)
def test_a_lesson_begins_by_seeing_to_the_library(lesson):
    cells = [cell for cell in course.read(lesson).cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") == ["install"] for cell in cells[:2]] == [True, False]


def test_the_library_is_installed_where_it_is_missing(monkeypatch):
    """By pip from the public repository; without one, a sentence says what to do."""

    def run_install(repository: str, found) -> list[str]:
        monkeypatch.setattr(course, "REPOSITORY", repository)
        cells = course.clean(v4.new_notebook(cells=[v4.new_markdown_cell("# A"), v4.new_code_cell("x = 1")])).cells
        assert [cell.cell_type for cell in cells] == ["markdown", "code", "code"] and cells[2].source == "x = 1"
        asked = []
        shell = SimpleNamespace(run_line_magic=lambda name, line: asked.append(f"{name} {line}"))
        code = TransformerManager().transform_cell(cells[1].source)
        with mock.patch("importlib.util.find_spec", lambda name: found):
            exec(code, {"get_ipython": lambda: shell})
        return asked

    place = "https://github.com/someone/something"
    assert run_install(place, None) == [f'pip install -q "tinymsg[course] @ git+{place}"']
    assert run_install(place, "there") == run_install("", "there") == []
    with pytest.raises(ImportError, match="make lab"):
        run_install("", None)


# Runs before a lesson's own cells: every exercise check then proves itself
PROVER = """
import tinymsg.course.checks as checks
plain_check, plain_check_value, plain_check_choice = checks.check, checks.check_value, checks.check_choice

def must_fail(message, check, *arguments, **options):
    try:
        check(*arguments, **options)
    except AssertionError as error:
        assert message in str(error), f"{message!r} is not in {str(error)!r}"
    else:
        raise RuntimeError(f"a wrong answer passes that should be told {message!r}")

def proving_check(mine, reference, *inputs, hints=None):
    assert plain_check(mine, reference, *inputs, hints=hints) is False, "the stub should say: not attempted"
    assert plain_check(reference, reference, *inputs, hints=hints) is True
    must_fail("is a `return` missing" if not isinstance(reference(*inputs[0]), (tuple, list)) else "got NoneType",
              plain_check, lambda *arguments: None, reference, *inputs, hints=hints)
    for message, mistake in (hints or {}).items():
        must_fail(message, plain_check, mistake, reference, *inputs, hints=hints)
    print("PROVED", len(hints or {}))
    return False

def proving_check_value(mine, expected, tolerance, name="your answer", hints=None):
    assert plain_check_value(mine, expected, tolerance, name) is False
    for message, value in (hints or {}).items():
        must_fail(message, plain_check_value, value, expected, tolerance, name, hints)
    assert plain_check_value(expected, expected, tolerance, name) is True
    for sign, word in ((1, "too large"), (-1, "too small")):
        off = expected + sign * (1.5 * tolerance + 1e-6 * max(1, abs(expected)))
        must_fail(word, plain_check_value, off, expected, tolerance, name)
    print("PROVED 2")
    return False

def proving_check_choice(mine, expected, mistakes, name="your answer"):
    assert plain_check_choice(mine, expected, mistakes, name) is False
    assert plain_check_choice(expected, expected, mistakes, name) is True
    for wrong, message in (*mistakes.items(), ("no such answer", "choose one of")):
        must_fail(message, plain_check_choice, wrong, expected, mistakes, name)
    print("PROVED", len(mistakes))
    return False

checks.check, checks.check_value, checks.check_choice = proving_check, proving_check_value, proving_check_choice
"""


def with_prover(lesson: Path, folder: Path) -> Path:
    """A copy of a lesson that proves its checks, among links to what lies beside it."""
    for path in course.HERE.iterdir():
        if path.name != lesson.name:
            (folder / path.name).symlink_to(path)
    notebook = course.read(lesson)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])) + 1
    notebook.cells.insert(place, v4.new_code_cell(PROVER))
    nbformat.write(notebook, folder / lesson.name)
    return folder / lesson.name


def proving_run(lesson: Path, folder: Path) -> str | None:
    """Run a lesson that proves its checks, in the smoke profile, to folder/out; what went wrong."""
    for name in ("in", "out"):
        (folder / name).mkdir()
    with mock.patch.dict(os.environ):
        course.use_lesson_environment()
        os.environ[ONLY_DEFAULT] = "1"
        return course.execute(
            with_prover(lesson, folder / "in"), folder / "out" / lesson.name, {"PROFILE": "smoke"}, limit=600
        ).problem


def smoke_run(lesson: Path, tmp_path_factory) -> tuple[str | None, Path]:
    """(what went wrong, executed notebook) of a `proving_run`: one for all tests, whichever process they are in."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke" / lesson.stem
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "problem.json"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until another process has run it
        if not said.exists():
            said.write_text(json.dumps(proving_run(lesson, folder)))
    return json.loads(said.read_text()), folder / "out" / lesson.name


@pytest.mark.notebook
@each_lesson
def test_lesson_runs_in_the_smoke_profile_and_its_checks_are_right(lesson, tmp_path, tmp_path_factory):
    """No warning; and of every exercise: the stub is not attempted, the solution passes, mistakes are told apart."""
    problem, executed = smoke_run(lesson, tmp_path_factory)
    assert problem is None
    target = Path(shutil.copy(executed, tmp_path))
    outputs = [o for cell in course.read(target).cells for o in cell.get("outputs", [])]
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []  # warnings land there
    proved = re.findall(r"^PROVED (\d+)$", "".join(o.text for o in outputs if o.output_type == "stream"), re.M)
    sources = "\n".join(cell.source for cell in course.read(lesson).cells if cell.cell_type == "code")
    assert len(proved) == len(re.findall(r"^(?:\w+ = )?check(?:_value|_choice)?\(", sources, re.M)) >= 3
    page = course.to_html(target).read_text()
    assert not re.search(r"<(script|img|iframe)[^>]*src=.https?:|<link[^>]*stylesheet[^>]*https?:", page)


@pytest.mark.course
@pytest.mark.notebook
@pytest.mark.parametrize("name", TWICE)
def test_two_runs_of_a_lesson_give_the_same_bytes(name, tmp_path, tmp_path_factory):
    """Cleaned, as they are committed; the first run is the one that proves the checks."""
    (lesson,) = [path for path in LESSONS if path.stem == name]
    assert (smoke_run(lesson, tmp_path_factory)[0], proving_run(lesson, tmp_path)) == (None, None)
    runs = smoke_run(lesson, tmp_path_factory)[1], tmp_path / "out" / lesson.name
    first, second = (course.clean(course.read(path)) for path in runs)
    for before, after in zip(first.cells, second.cells, strict=True):
        assert before == after, before.source  # says which cell
    assert nbformat.writes(first) == nbformat.writes(second)


@pytest.mark.course
@pytest.mark.notebook
@each_lesson
def test_committed_outputs_come_out_again(lesson, tmp_path):
    """nbval, in a fresh kernel and in the committed profile: the outputs of the cells tagged nbval-check-output."""
    assert any(
        "nbval-check-output" in cell.metadata.get("tags", []) or "# NBVAL_CHECK_OUTPUT" in cell.source
        for cell in course.read(lesson).cells
    ), "no output is compared"
    watch = course.Watch(None)
    watch.start()
    done = _nbval(lesson, tmp_path)
    spent = watch.stop()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    seconds, gigabytes = course.stated(course.read(lesson))
    assert watch.peak / 1e9 <= 1.25 * gigabytes + 0.25
    assert spent <= 4 * seconds + 60, "far beyond what its first cell says, even for a busy machine"


def _nbval(notebook: Path, tmp_path: Path) -> subprocess.CompletedProcess:
    limit = 4 * course.stated(course.read(notebook))[0] + 600  # against what hangs; slowness is for the caller to judge
    settings = tmp_path / "pytest.ini"  # ours turns the warnings of nbval itself into errors
    settings.write_text("[pytest]\n")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            settings,
            f"--rootdir={notebook.parent}",
            "-p",
            "no:cacheprovider",
            "--nbval-lax",
            "--nbval-current-env",
            f"--nbval-cell-timeout={limit}",
            notebook,
        ],
        capture_output=True,
        text=True,
        timeout=limit + 120,
    )


# --- course.py ----------------------------------------------------------------------------------------------

# A red dot, 1x1
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
SHOW = f"""from IPython.display import display
words = {{"image/png": {{"alt": 'a "red" <dot>'}}}}
display({{"image/png": "{PNG}", "text/plain": "a dot"}}, raw=True, metadata=words)"""
OPENING = """# Dots
After this lesson you can see dots. Prerequisites: none. 1 minute.
**Machine:** 990 seconds and 0.1 GB on two CPU cores."""


def make(path: Path, *sources: str, opening: str = OPENING, profile: str = 'PROFILE = "cpu"') -> Path:
    cells = [v4.new_markdown_cell(opening), v4.new_code_cell(profile, metadata={"tags": ["parameters"]})]
    cells += [v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=course.with_install(cells), metadata=kernel), path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A notebook in order, with a picture, a linked widget and a compared output, as `build` leaves it."""
    path = make(
        tmp_path_factory.mktemp("built") / "00_dot.ipynb",
        "print(1 + 1)  # two",
        SHOW,
        "import ipywidgets\nslider, text = ipywidgets.SelectionSlider(options=['a', 'b']), ipywidgets.HTML('x')\n"
        "ipywidgets.jslink((slider, 'index'), (text, 'value'))\nipywidgets.VBox([slider, text])",
    )
    notebook = course.read(path)
    notebook.cells[3].metadata["tags"] = ["nbval-check-output"]
    nbformat.write(notebook, path)
    with mock.patch.dict(os.environ):
        assert course.build([path], limit=120) == 0
    return path


def test_the_memory_of_a_kernel_and_what_it_starts_counts_and_that_of_others_does_not():
    """A test before this one left a server and its kernel running; this one starts what is no kernel."""
    code = "held = b'x' * int(sys.argv[1]) * 1_000_000; print(flush=True); open(0).read()"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {'import sys; ' + code!r}, sys.argv[1]])"

    def holder(megabytes: int, *arguments: str, code: str = f"import sys; {code}"):
        command = [sys.executable, "-c", code, str(megabytes), *arguments]
        process = held.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        held.callback(process.stdin.close)
        process.stdout.readline()

    with contextlib.ExitStack() as held:
        holder(500, "ipykernel_launcher")
        watch = course.Watch(None)
        watch.start()
        held.callback(watch.stop)
        holder(400)
        holder(150, "ipykernel_launcher", code=starts)
        while watch.peak < 150e6:  # until it has been seen
            time.sleep(0.1)
        assert watch.peak < 350e6


def test_build_states_seconds_and_memory_of_its_run(built):
    seconds, gigabytes = course.stated(course.read(built))
    assert seconds in range(10, 121, 10) and 0 < gigabytes <= 1 and gigabytes % 0.5 == 0


@pytest.mark.parametrize(
    ("prose", "numbers"),
    [
        ("gains 0.45 dB on average, 12 % of it by luck", ["0.45 dB", "12 %"]),
        ("its PSNR of 31.2 falls in 3 seconds", ["PSNR of 31.2", "3 seconds"]),
        ("a 95 % interval, $3$ dB, `4 dB`, 5 pixels, 1,000 kernels, 2D", []),
        ("<!-- unmeasured -->\n10 dB are a factor of 10", []),
    ],
)
def test_numbers_in_prose_that_no_result_would_change(prose, numbers):
    assert course.bare_numbers(prose) == numbers


def test_build_leaves_a_notebook_in_order(built):
    assert course.problems(built) == []
    assert course.clean(course.read(built)) == course.read(built)


@pytest.mark.course
def test_two_builds_give_the_same_bytes(built, tmp_path):
    again = tmp_path / built.name
    again.write_bytes(built.read_bytes())
    assert course.build([again], limit=120) == 0
    # But for the seconds and memory that it states, and the id made of that cell's source
    first, second = (
        course.MACHINE.sub("", path.read_text()).replace(course.read(path).cells[0].id, "") for path in (built, again)
    )
    assert first == second


@pytest.mark.course
def test_nbval_accepts_it_and_rejects_a_changed_output(built, tmp_path):
    done = _nbval(built, tmp_path)
    assert done.returncode == 0, done.stdout
    notebook = course.read(built)
    notebook.cells[3].outputs[0].text = "3\n"
    changed = tmp_path / built.name
    nbformat.write(notebook, changed)
    assert _nbval(changed, tmp_path).returncode == 1


def test_run_goes_on_after_a_failure_and_names_the_cell(tmp_path, capsys, built):
    files = [
        make(tmp_path / "01_bad.ipynb", "x = 1\nraise KeyError('nothing here')"),
        make(tmp_path / "02_dead.ipynb", "import os\nos.kill(os.getpid(), 9)"),
        built,
    ]
    assert course.run(files, tmp_path / "out", {"PROFILE": "smoke"}, limit=120) == 1
    shown = capsys.readouterr().out
    assert "'x = 1': KeyError: 'nothing here'" in shown and "the kernel died" in shown
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["problem"] is None for row in rows.values()] == [False, False, True]
    assert rows["00_dot.ipynb"]["peak"] > 0.02  # GB: a kernel is no smaller
    assert "injected-parameters" in (tmp_path / "out" / "00_dot.ipynb").read_text()


@pytest.mark.course
def test_a_slow_lesson_is_ended(tmp_path, capsys):
    slow = make(tmp_path / "03_slow.ipynb", "import time\ntime.sleep(100)")
    assert course.run([slow], tmp_path / "out", {"PROFILE": "smoke"}, limit=8) == 1
    assert "longer than 8 s" in capsys.readouterr().out


def test_page_keeps_alt_text_and_needs_no_other_host(tmp_path, built):
    assert course.run([built], tmp_path, {"PROFILE": "smoke"}, limit=120) == 0
    page = (tmp_path / "00_dot.html").read_text()
    assert (
        'alt="a &quot;red&quot; &lt;dot&gt;"' in page.replace("&#34;", "&quot;")
        or "alt='a \"red\" &lt;dot&gt;'" in page
    )
    assert "SelectionSliderModel" in page and "data-widget" in page
    assert not re.search(r"src=.https?:", page)


def test_page_draws_formulas(tmp_path):
    path = make(
        tmp_path / "00_formula.ipynb",
        opening=r"The level $\sqrt{\bar\alpha_t}$ and $$\begin{aligned} a &= b \end{aligned}$$",
    )
    page = course.to_html(path).read_text()
    assert page.count("<math") == 2 and "<msqrt>" in page and "<mtable" in page


def test_brackets_of_a_formula_match():
    for tex in (r"\lVert a \rVert^2", r"\Big(\tfrac1n a\Big)^{2}"):
        first, *_, last = re.findall(r"<mo([^>]*)>(?:&#x02016;|[()])</mo>", course.markdown_html(f"${tex}$"))
        assert ("minsize" in first) == ("minsize" in last) and ('"false"' in first) == ('"false"' in last)
    assert (
        '<msup><mrow><mo minsize="1.623em" maxsize="1.623em" stretchy="true" form="postfix">)</mo></mrow>'
        in course.markdown_html(r"$\Big(a\Big)^2$")
    )


def test_page_without_alt_text_is_an_error(tmp_path):
    path = make(tmp_path / "00_bare.ipynb", SHOW)
    notebook = course.read(path)
    notebook.cells[3].outputs = [v4.new_output("display_data", data={"image/png": PNG})]
    nbformat.write(notebook, path)
    with pytest.raises(course.UserError, match="without alternative text"):
        course.to_html(path)


def _spoil(change):
    return lambda notebook: change(notebook.cells[3])


def _output(*args, **kwargs):
    return _spoil(lambda cell: cell.outputs.append(v4.new_output(*args, **kwargs)))


DEFECTS = {
    "kB; at most": _output("stream", text="x" * 600_000),
    "a stored error": _output("error", ename="ValueError", evalue="", traceback=[]),
    "a stored warning": _output("stream", name="stderr", text="FutureWarning"),
    "a picture without alternative text": _output("display_data", data={"image/png": PNG}),
    "a widget view": _output("display_data", data={course.VIEW: {"model_id": "1"}}),
    "a memory address": _output("execute_result", data={"text/plain": "<object at 0x7f0011223344>"}),
    "21 lines": _spoil(lambda cell: cell.update(source="\n".join("x = 1" for _ in range(21)))),
    "was not run": _spoil(lambda cell: cell.update(execution_count=None)),
    "timings": _spoil(lambda cell: cell.metadata.update(execution={"iopub.execute_input": "now"})),
    "widget state": lambda notebook: notebook.metadata.update(widgets={course.STATE: {"state": {}}}),
    "no outputs": lambda notebook: [cell.update(outputs=[]) for cell in notebook.cells[1:]],
    "cells are tagged `parameters`": lambda notebook: notebook.cells[2].metadata.pop("tags"),
    "does not say PROFILE": lambda notebook: notebook.cells[2].update(source='PROFILE = "gpu"'),
    "does not tell minutes": lambda notebook: notebook.cells[0].update(source="# Dots\nYou can see dots."),
    "does not tell seconds and memory": lambda notebook: notebook.cells[0].update(
        source="# Dots\n1 minute, 1 second, 1 GB."
    ),
    "a measured number in prose, '3.1 dB'": lambda notebook: notebook.cells[0].update(
        source="# Dots\nIt gains 3.1 dB."
    ),
    "is of level 3 after one of level 1": lambda notebook: notebook.cells[0].update(source="# Dots\n### Too deep"),
    "is of level 1 after one of level 2": lambda notebook: notebook.cells[0].update(source="# Dots\n## One\n# Two"),
    "kernel is not named": lambda notebook: notebook.metadata.kernelspec.update(name="mine"),
}


@pytest.mark.parametrize("sentence", DEFECTS)
def test_check_sees_each_defect(sentence, built, tmp_path, capsys):
    notebook = course.read(built)
    DEFECTS[sentence](notebook)
    path = tmp_path / built.name
    nbformat.write(notebook, path)
    assert any(sentence in found for found in course.problems(path))
    assert course.main(["check", str(path)]) == 1
    assert sentence in capsys.readouterr().out


def test_the_minutes_of_a_lesson_are_counted():
    shown, hidden = v4.new_code_cell("a = 1\n\nb = 2"), v4.new_code_cell("plot()\n" * 30)
    hidden.metadata.tags = [course.HIDDEN]
    hidden.outputs = [v4.new_output("display_data", data={"image/jpeg": "..."})]
    prose = "ten " * 9 + "words\n\n" + "$$x$$ " * 5 + "\n\n### Exercise 1 · Try (★, 7 minutes)"
    effort = course.effort(v4.new_notebook(cells=[v4.new_markdown_cell(prose), shown, hidden]))
    assert effort == course.Effort(words=10 + 5 + 8, formula_words=5, lines=2, figures=1, exercises=7)
    assert effort.minutes == pytest.approx(18 / 200 + 5 / 100 + 2 / 20 + 1 + 7)


def test_clean_strips_what_tools_add(tmp_path, built):
    path = tmp_path / built.name
    assert course.execute(built, path, {"PROFILE": "smoke"}, limit=120).problem is None
    assert "papermill" in path.read_text() and course.STATE in path.read_text()
    assert course.main(["clean", str(path)]) == 0
    cleaned = course.read(path)
    assert [cell.source for cell in cleaned.cells] == [cell.source for cell in course.read(built).cells]
    assert not {"papermill", "widgets"} & set(cleaned.metadata)
    assert cleaned.cells[4].outputs[0].metadata["image/png"]["alt"] == 'a "red" <dot>'


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--set", "nosuch=1", "FILE"], "its `parameters` cell has: PROFILE"),
        (["run", "--set", "nosuch", "FILE"], "expected NAME=VALUE"),
        (["run", "missing.ipynb"], "No such file"),
        (["check", __file__], "not a readable notebook"),
    ],
)
def test_mistakes_get_one_sentence(arguments, sentence, built, capsys):
    assert course.main([str(built) if a == "FILE" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_unknown_profile_names_the_known(capsys):
    with pytest.raises(SystemExit):
        course.main(["run", "--profile", "huge"])
    assert "smoke" in capsys.readouterr().err


@pytest.mark.parametrize("ours", [True, False])
def test_lab_asks_nothing_and_leaves_settings_of_others_alone(ours, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setattr(course, "use_fast_allocator", lambda: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", "elsewhere" if ours else str(tmp_path))
    course.lab()
    overrides = list(tmp_path.rglob("overrides.json"))
    assert len(started) == 1 and str(course.HERE) in started[0]
    assert [json.loads(path.read_text()) for path in overrides] == ours * [
        {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    ]

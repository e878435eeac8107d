"""Runs, builds and checks the lessons: course.py run | build | clean | check | minutes | lab."""

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "course"
PROFILES = ("smoke", "cpu", "gpu", "full")  # smoke: seconds, for the tests; cpu: what is committed
MAX_BYTES, MAX_LINES = 500_000, 20  # of a committed notebook; of a code cell
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
PICTURES = ("image/png", "image/jpeg")
# The public repository, https://github.com/OWNER/NAME: lessons install the library from there where it is missing
# (`clean` writes it into them), and the site's buttons open them in Colab or, by Binder, in JupyterLab. Empty: neither
REPOSITORY = os.environ.get("TINYMSG_REPOSITORY", "")
INSTALL = """# Only where the library is missing: Colab, Kaggle, a bare kernel
import importlib.util

if importlib.util.find_spec("tinymsg") is None:
    """
NOWHERE = "tinymsg is not installed for this kernel; in its repository, run `make lab`, or pip install '.[course]'"


class UserError(Exception):
    """A mistake that one sentence explains."""


def lessons() -> list[Path]:
    return sorted(HERE.glob("0*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except Exception as error:  # nbformat raises several kinds for a file that is not a notebook
        raise UserError(f"{path} is not a readable notebook: {str(error).splitlines()[0]}") from error
    return notebook


def use_lesson_environment() -> None:
    """What every kernel gets: the same at each run, no progress bars in outputs, the lessons' own figure backend."""
    os.environ.update({"PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"})
    os.environ.pop("MPLBACKEND", None)
    use_fast_allocator()


def use_fast_allocator() -> None:
    """The command line's allocator settings, which glibc reads when a process starts: kernels inherit them."""
    from tinymsg.cli.allocator import use_allocator

    use_allocator()


# --- run ----------------------------------------------------------------------------------------------------


def is_fresh(lesson: Path, executed: Path, profile: str) -> bool:
    """Whether `executed` is this lesson, run to its end in this profile after the last change of what it uses."""
    if not executed.exists():
        return False
    kinds = (".py", ".json", ".safetensors", ".csv", ".toml")
    used = [path for path in (HERE.parent / "tinymsg").rglob("*") if path.suffix in kinds]
    used += [lesson, *lesson.parent.glob("results/*"), *lesson.parent.glob("*.png")]  # a learner's own photograph
    notebook = read(executed)
    injected = [c.source for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    whole = all(c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source.strip())
    failed = notebook.metadata.get("papermill", {}).get("exception")
    is_newest = executed.stat().st_mtime >= max(path.stat().st_mtime for path in used)
    return is_newest and whole and not failed and f'PROFILE = "{profile}"' in "".join(injected)


@dataclass
class Result:
    """One lesson: what went wrong (None: nothing), seconds, peak memory of its kernel in GB."""

    problem: str | None
    seconds: float
    peak: float


class Watch(threading.Thread):
    """Follows the kernels that this process starts from now on: their peak memory, and an end at the time limit."""

    def __init__(self, limit: float | None):
        super().__init__(daemon=True)
        self.limit, self.expired = limit, False
        self.peaks: dict[int, int] = {}
        self._own, self._start, self._stop_now = psutil.Process(), time.monotonic(), threading.Event()
        self._others = set(_kernels(self._own))

    def run(self) -> None:
        while not self._stop_now.wait(0.2):
            for process in set(_kernels(self._own)) - self._others:
                self.peaks[process.pid] = max(_peak_bytes(process), self.peaks.get(process.pid, 0))
                if self.limit and time.monotonic() - self._start > self.limit:
                    self.expired = True
                    _kill(process)

    @property
    def peak(self) -> int:
        """Bytes of the largest, at its peak."""
        return max(self.peaks.values(), default=0)

    def stop(self) -> float:
        self._stop_now.set()
        self.join()
        return time.monotonic() - self._start


def _kernels(own: psutil.Process) -> Iterator[psutil.Process]:
    """Those below this process, and what they started; other children, copies of us among them, are no lesson's."""
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            if any("ipykernel" in part for part in process.cmdline()):
                yield process
                yield from process.children(recursive=True)


def _peak_bytes(process: psutil.Process) -> int:
    """The kernel's own high-water mark on Linux; elsewhere the memory held at this moment."""
    try:
        return int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) * 1024
    except (OSError, TypeError):
        pass
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


def parameter_names(notebook: nbformat.NotebookNode) -> set[str]:
    """Names that the cell tagged `parameters` assigns."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    tree = ast.parse("\n".join(cell.source for cell in cells))
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def execute(source: Path, target: Path, parameters: dict, limit: float | None) -> Result:
    """Run one notebook in a fresh kernel and write it, executed, to `target`, whether it fails or not."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    unknown = set(parameters) - parameter_names(read(source))
    if unknown:
        raise UserError(f"{source.name} has no parameter {', '.join(sorted(unknown))} in its cell tagged `parameters`")
    target.parent.mkdir(parents=True, exist_ok=True)
    watch = Watch(limit)
    watch.start()
    problem = None
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=source.parent,
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        problem = f"cell [{error.exec_count}], {_first_line(error.source)!r}: {error.ename}: {error.evalue}"
    except DeadKernelError:
        problem = f"longer than {limit:.0f} s" if watch.expired else "the kernel died (out of memory?)"
    except Exception as error:  # whatever it is, the other lessons still run
        problem = f"longer than {limit:.0f} s" if watch.expired else f"{type(error).__name__}: {error}"
    seconds = watch.stop()
    return Result(problem and " ".join(problem.split())[:300], seconds, watch.peak / 1e9)


def _first_line(source: str) -> str:
    return next((line for line in source.splitlines() if line.strip()), "")[:60]


def run(files: list[Path], out: Path, parameters: dict, limit: float | None) -> int:
    """Run lessons one after the other, executed notebook and HTML to `out`; 1 if any failed."""
    use_lesson_environment()
    for file in files:  # a wrong parameter is said before minutes are spent
        if set(parameters) - parameter_names(read(file)):
            known = ", ".join(sorted(parameter_names(read(file)))) or "none"
            raise UserError(f"{file.name} does not take {', '.join(parameters)}; its `parameters` cell has: {known}")
    print(f"{'lesson':<24} {'status':<8} {'seconds':>8} {'peak GB':>8}")
    results = {}
    for file in files:
        target = out / file.name
        results[file.name] = result = execute(file, target, parameters, limit)
        if target.exists():
            try:
                to_html(target)
            except Exception as error:  # the other lessons' pages still come out
                result.problem = result.problem or f"no HTML: {error}"
        status = "failed" if result.problem else "ok"
        print(f"{file.stem:<24} {status:<8} {result.seconds:8.0f} {result.peak:8.2f}", flush=True)
        if result.problem:
            print(f"    {result.problem}", flush=True)
    failed = sum(result.problem is not None for result in results.values())
    seconds, peak = sum(r.seconds for r in results.values()), max(r.peak for r in results.values())
    print(f"{'all':<24} {'failed' if failed else 'ok':<8} {seconds:8.0f} {peak:8.2f}")
    print(f"executed notebooks and HTML: {out}")
    report = out / "results.json"  # of lessons run before, too
    before = json.loads(report.read_text()) if report.exists() else {}
    report.write_text(json.dumps(before | {name: vars(r) for name, r in results.items()}, indent=1) + "\n")
    return 1 if failed else 0


# --- HTML ---------------------------------------------------------------------------------------------------

# nbconvert's own page takes scripts for widgets and formulas from other hosts, and drops the figures' alt text.
# This one holds all it needs: the pictures with their alt text, MathML, and widgets.js on the saved widget state.
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- macro picture(output) -%}
{%- for kind in ('image/png', 'image/jpeg') if kind in output.data -%}
{%- if loop.first -%}
<img alt="{{ output.metadata.get(kind, {}).get('alt', '') | e }}"
 src="data:{{ kind }};base64,{{ output.data[kind] | trim }}">
{%- endif -%}
{%- else -%}
<pre>{{ output.data.get('text/plain', '') | e }}</pre>
{%- endfor -%}
{%- endmacro -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block input_group -%}
{%- if 'hide-input' in cell.metadata.get('tags', []) -%}
<details class="jp-Cell-inputWrapper"><summary>Code</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}">{{ picture(output) }}</div>
{%- endblock -%}
{%- block data_jpg scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}">{{ picture(output) }}</div>
{%- endblock -%}
{%- block data_widget_view scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}"
 data-widget="{{ output.data['application/vnd.jupyter.widget-view+json'].model_id | e }}">{{ picture(output) }}</div>
{%- endblock -%}
{%- block footer_js -%}
<style>{{ widgets_css }}</style>
<script>{{ widgets_js }}</script>
{%- endblock -%}
"""


def markdown_html(source: str, attachments: dict | None = None, anchor_link_text: str = "¶") -> str:
    """Markdown of a cell or a file as HTML, formulas as MathML."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    renderer = Renderer(escape=False, attachments=attachments or {}, anchor_link_text=anchor_link_text)
    return MarkdownWithMath(renderer=renderer).render(source)


def to_html(path: Path) -> Path:
    """Write the page of an executed notebook beside it. Raises UserError where a picture has no alt text."""
    import jinja2
    from nbconvert import HTMLExporter

    class Exporter(HTMLExporter):
        @jinja2.pass_context
        def markdown2html(self, context, source: str) -> str:
            return markdown_html(source, context.get("cell", {}).get("attachments", {}), self.anchor_link_text)

    loader = jinja2.DictLoader({"tinymsg.html.j2": TEMPLATE})
    exporter = Exporter(extra_loaders=[loader], template_file="tinymsg.html.j2")
    for kind in ("js", "css"):
        exporter.environment.globals[f"widgets_{kind}"] = (HERE / f"widgets.{kind}").read_text()
    page, _ = exporter.from_notebook_node(read(path))
    target = path.with_suffix(".html")
    target.write_text(page)
    bare = len(re.findall(r'<img alt=""|No description has been provided for this image', page))
    if bare:
        raise UserError(f"{bare} picture(s) without alternative text in {target.name}")
    return target


def mathml(tex: str, display: str) -> str:
    """A formula that browsers draw by themselves; what cannot be converted stays as TeX."""
    from html import escape

    from latex2mathml.converter import convert

    tex = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", tex.strip())
    try:
        formula = convert(tex, display=display)
    except Exception:  # the converter has no common class for what it does not know
        return f"<code>{escape(tex)}</code>"
    # As in TeX: norm bars do not grow by themselves; a closing bracket with an exponent is as large as the opening one
    formula = formula.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')
    return re.sub(
        r"(<msu[bp]+>)(<mo minsize[^>]*)(>[^<]*</mo>)", r'\1<mrow>\2 stretchy="true" form="postfix"\3</mrow>', formula
    )


# --- clean and build ----------------------------------------------------------------------------------------

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}
CELL_KEYS = ("tags", "jupyter", "editable", "deletable")  # of cell metadata; all else comes from tools


def with_install(cells: list) -> list:
    """The cells of a lesson with INSTALL before all other code; one that is there already keeps its run."""
    there = [cell for cell in cells if "install" in cell.metadata.get("tags", [])]
    cell = there[0] if there else nbformat.v4.new_code_cell(metadata={"tags": ["install"]})
    how = f'%pip install -q "tinymsg[course] @ git+{REPOSITORY}"' if REPOSITORY else f'raise ImportError("{NOWHERE}")'
    cell.source = INSTALL + how
    others = [other for other in cells if other not in there]
    place = next((i for i, other in enumerate(others) if other.cell_type == "code"), len(others))
    return [*others[:place], cell, *others[place:]]


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Only what an author means to commit: no timings, no widget state, the same ids at every build; first INSTALL."""
    notebook = copy.deepcopy(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    extra = {key: notebook.metadata[key] for key in ("title", "jupytext") if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE, **extra})
    notebook.cells = [
        c
        for c in notebook.cells
        if not {"injected-parameters", "papermill-error-cell-tag"} & set(c.metadata.get("tags", []))
    ]
    notebook.cells = with_install(notebook.cells)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in CELL_KEYS if cell.metadata.get(key)})
        digest = hashlib.sha1(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs)
    return notebook


def _clean_outputs(outputs: list) -> list:
    kept = []
    for output in outputs:
        output.pop("transient", None)
        if "data" in output:
            had_view = output.data.pop(VIEW, None) is not None
            output.metadata.pop(VIEW, None)
            if not output.data or (had_view and set(output.data) == {"text/plain"}):
                continue  # a widget without a picture: what is left is its repr
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text  # where a stream is cut into pieces depends on timing
            continue
        kept.append(output)
    return kept


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(nbformat.writes(notebook).rstrip("\n") + "\n")
    partial.replace(path)


MACHINE = re.compile(r"\*\*Machine:\*\* (\d+) seconds and (\d+\.\d) GB on two CPU cores")


def stated(notebook: nbformat.NotebookNode) -> tuple[int, float] | None:
    """(seconds, GB) that the first cell says the lesson takes, or None."""
    found = MACHINE.search(notebook.cells[0].source) if notebook.cells else None
    return found and (int(found[1]), float(found[2]))


def state(notebook: nbformat.NotebookNode, result: Result) -> nbformat.NotebookNode:
    """Write into the first cell what the run took, rounded up to 10 seconds and half a GB, as the next run will."""
    seconds, gigabytes = 10 * math.ceil(result.seconds / 10), math.ceil(2 * result.peak) / 2
    said = f"**Machine:** {seconds} seconds and {gigabytes:.1f} GB on two CPU cores"
    notebook.cells[0].source = MACHINE.sub(said, notebook.cells[0].source)
    return notebook


def build(files: list[Path], limit: float | None) -> int:
    """Run lessons as committed (the CPU profile) and write outputs, seconds and memory back in place, cleaned."""
    import tempfile

    from tinymsg.course.photo import ONLY_DEFAULT

    use_lesson_environment()
    os.environ[ONLY_DEFAULT] = "1"  # an author's own photograph is not for committing
    failed = 0
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / file.name
            result = execute(file, target, {}, limit)
            if result.problem is None:
                write(clean(state(read(target), result)), file)
        failed += result.problem is not None
        print(
            f"{file.name}: {result.seconds:.0f} s, {result.peak:.2f} GB, {file.stat().st_size / 1000:.0f} kB"
            + (f", not written: {result.problem}" if result.problem else ""),
            flush=True,
        )
    return 1 if failed else 0


# --- check --------------------------------------------------------------------------------------------------

# What the first cell has to tell, and how it is recognised
OPENING = {
    "what the learner can do afterwards": r"you (can|will be able)|outcomes",
    "prerequisites": r"prerequisite|you need|before (this|you)",
    "minutes": r"\bminutes?\b|\bmin\b",
    "seconds and memory of a run, as `build` writes them": MACHINE.pattern,
}


def problems(path: Path) -> list[str]:
    """What is wrong with a committed notebook; nothing is run."""
    notebook = read(path)
    found = []
    if path.stat().st_size > MAX_BYTES:
        found.append(f"{path.stat().st_size / 1000:.0f} kB; at most {MAX_BYTES // 1000}")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not named python3")
    if "widgets" in notebook.metadata:
        found.append("widget state is stored: run `course.py clean`")
    first = notebook.cells[0] if notebook.cells else None
    opening = first.source if first is not None and first.cell_type == "markdown" else ""
    found += [
        f"the first cell does not tell {what}" for what, how in OPENING.items() if not re.search(how, opening, re.I)
    ]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells are tagged `parameters`; one should be")
    elif not re.search(r"""^PROFILE = ["']cpu["']""", tagged[0].source, re.M):
        found.append('the cell tagged `parameters` does not say PROFILE = "cpu"')
    if not any(cell.get("outputs") for cell in notebook.cells):
        found.append("no outputs are stored: run `course.py build`")
    found += _heading_problems(notebook)
    ids = [cell.get("id") for cell in notebook.cells]
    if len(set(ids)) != len(ids):
        found.append("cell ids are not unique")
    for number, cell in enumerate(notebook.cells):
        found += [f"cell {number} ({_first_line(cell.source)!r}): {problem}" for problem in _cell_problems(cell)]
    return found


def _heading_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """One title, and no level left out on the way down: who listens to a page moves about in it by its headings."""
    found, level = [], 0
    for cell in notebook.cells:
        prose = re.sub(r"```.*?```", "", cell.source, flags=re.S) if cell.cell_type == "markdown" else ""
        for marks, title in re.findall(r"^(#{1,6}) +(.+)$", prose, re.M):
            if len(marks) > level + 1 or (len(marks) == 1) != (level == 0):
                found.append(f"heading {title!r} is of level {len(marks)} after one of level {level}")
            level = len(marks)
    return found


# --- minutes: how long a lesson takes ------------------------------------------------------------------------

WORDS_A_MINUTE, FORMULA_WORDS_A_MINUTE, LINES_A_MINUTE = 200, 100, 20
HIDDEN = "hide-input"  # tag of a code cell that nobody needs to read: it plots, imports or lists sizes
EXERCISE = re.compile(r"^#+ Exercise.*\(★+, (\d+) minutes\)", re.M)


@dataclass
class Effort:
    """What there is to do in a lesson."""

    words: int
    formula_words: int  # of these, in paragraphs with a formula of its own line
    lines: int  # of code that is not hidden
    figures: int
    exercises: int  # minutes, as they say

    @property
    def minutes(self) -> float:
        reading = (self.words - self.formula_words) / WORDS_A_MINUTE + self.formula_words / FORMULA_WORDS_A_MINUTE
        return reading + self.lines / LINES_A_MINUTE + self.figures + self.exercises


def effort(notebook: nbformat.NotebookNode) -> Effort:
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [(len(part.split()), "$$" in part) for source in prose for part in source.split("\n\n")]
    shown = [cell.source for cell in code if HIDDEN not in cell.metadata.get("tags", [])]
    return Effort(
        sum(words for words, _ in counts),
        sum(words for words, has_formula in counts if has_formula),
        sum(bool(line.strip()) for source in shown for line in source.splitlines()),
        sum(bool(set(PICTURES) & set(output.get("data", {}))) for cell in code for output in cell.get("outputs", [])),
        sum(int(minutes) for source in prose for minutes in EXERCISE.findall(source)),
    )


def minutes(files: list[Path]) -> int:
    print(f"{'lesson':<24} {'words':>6} {'lines':>6} {'figures':>8} {'exercises':>10} {'minutes':>8}")
    efforts = {file: effort(read(file)) for file in files}
    for file, of in efforts.items():
        print(f"{file.name:<24} {of.words:>6} {of.lines:>6} {of.figures:>8} {of.exercises:>10} {of.minutes:>8.0f}")
    total = sum(of.minutes for of in efforts.values())
    print(f"{sum(of.words for of in efforts.values())} words, {total:.0f} minutes: {total / 60:.1f} hours")
    return 0


UNMEASURED = "<!-- unmeasured -->"  # in a Markdown cell: its numbers are definitions, rules of thumb or others' figures


def bare_numbers(source: str) -> list[str]:
    """Numbers with a unit of measurement in the prose of a Markdown cell; they would not change with the results.

    Formulas, code, the 95 % of an interval and what `build` writes are no such numbers.
    """
    if UNMEASURED in source:
        return []
    prose = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<[^>]*>", " ", source, flags=re.S)
    prose = re.sub(r"\b95 ?%", " ", MACHINE.sub(" ", prose))
    return [
        " ".join(m[0].split())
        for m in re.finditer(
            r"(?:\d[\d.,]*\s*(?:dB|%|GB|MB|kB|seconds?|ms|crops? a second)(?!\w))"
            r"|(?:PSNR|SSIM|LPIPS)\s+(?:of\s+)?\d[\d.]*",
            prose,
        )
    ]


def _cell_problems(cell: nbformat.NotebookNode) -> list[str]:
    found = []
    if cell.cell_type == "markdown":
        found += [
            f"a measured number in prose, {number!r}: let a code cell say it from a results file, or mark the cell "
            f"{UNMEASURED} if it is a definition"
            for number in bare_numbers(cell.source)
        ]
        if re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=[\"'][^\"'])", cell.source):
            found.append("a picture without alternative text")
        return found
    lines = len(cell.source.splitlines())
    if lines > MAX_LINES:
        found.append(f"{lines} lines; at most {MAX_LINES}")
    if cell.cell_type != "code":
        return found
    if cell.source.strip() and cell.execution_count is None and "install" not in cell.metadata.get("tags", []):
        found.append("was not run")
    if {"execution", "papermill"} & set(cell.metadata):
        found.append("timings are stored: run `course.py clean`")
    for output in cell.outputs:
        if output.output_type == "error":
            found.append(f"a stored error: {output.ename}")
        if output.output_type == "stream" and output.name == "stderr":
            found.append(f"a stored warning: {_first_line(output.text)!r}")
        if VIEW in output.get("data", {}):
            found.append("a widget view is stored: run `course.py clean`")
        for kind in PICTURES:
            if kind in output.get("data", {}) and not output.metadata.get(kind, {}).get("alt", "").strip():
                found.append("a picture without alternative text")
        if re.search(
            r"\bat 0x[0-9a-f]{6,}",
            json.dumps(output.get("text", "")) + json.dumps(output.get("data", {}).get("text/plain", "")),
        ):
            found.append("a memory address in the output, other at every run")
    return found


def check(files: list[Path]) -> int:
    found = {file: problems(file) for file in files}
    for file, sentences in found.items():
        print(f"{file.name}: {'in order' if not sentences else ''}")
        for sentence in sentences:
            print(f"    {sentence}")
    return 1 if any(found.values()) else 0


# --- command line -------------------------------------------------------------------------------------------


def lab() -> int:
    """Open JupyterLab on the lessons, without its news and update questions."""
    use_fast_allocator()
    if sys.prefix != sys.base_prefix:  # our own environment: others' settings are left alone
        # --LabApp.news_url=None alone still asks, at first, whether one wants news
        overrides = Path(sys.prefix) / "share/jupyter/lab/settings/overrides.json"
        overrides.parent.mkdir(parents=True, exist_ok=True)
        overrides.write_text(json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}) + "\n")
    # In a container one is root, and the server listens on this machine alone, behind a token
    as_root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-m",
            "jupyterlab",
            str(HERE),
            "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            *as_root,
        ],
    )


def _parameters(profile: str, settings: list[str]) -> dict:
    parameters = {"PROFILE": profile}
    for item in settings:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--set {item}: expected NAME=VALUE")
        try:
            parameters[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[name] = text
    return parameters


def main(arguments: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="course.py", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "run": "run lessons headless; executed notebooks and HTML go to runs/course",
        "build": "run lessons and write their cleaned outputs back: before committing",
        "clean": "strip timings and widget state",
        "check": "look over committed notebooks",
        "minutes": "how long the lessons take, from their words, code, figures and exercises",
        "lab": "open JupyterLab",
    }
    for name, text in helps.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name != "lab":
            sub.add_argument("files", nargs="+" if name == "clean" else "*", type=Path, help="default: every lesson")
        if name in ("run", "build"):
            sub.add_argument(
                "--timeout", type=float, metavar="SECONDS", help="for one lesson (default: 900; none on gpu, full)"
            )
        if name == "run":
            sub.add_argument(
                "--profile", choices=PROFILES, default="cpu", help="sizes and budget (default: %(default)s)"
            )
            sub.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="NAME=VALUE",
                help="another parameter of the notebook; may be repeated",
            )
            sub.add_argument("--out", type=Path, default=RUNS, metavar="FOLDER")
            sub.add_argument("--stale", action="store_true", help="only those not run since the last change")
    args = top.parse_args(arguments)
    if args.command == "lab":
        return lab()
    files = [file.resolve() for file in args.files] or lessons()
    try:
        if not files:
            raise UserError(f"no lessons (0*.ipynb) in {HERE}")
        if args.command == "check":
            return check(files)
        if args.command == "minutes":
            return minutes(files)
        if args.command == "clean":
            for file in files:
                write(clean(read(file)), file)
            return 0
        limit = args.timeout or (None if getattr(args, "profile", "cpu") in ("gpu", "full") else 900)
        if args.command == "build":
            return build(files, limit)
        if args.stale:
            files = [file for file in files if not is_fresh(file, args.out / file.name, args.profile)]
            if not files:
                print(f"nothing has changed since the lessons were run: {args.out}")
                return 0
        return run(files, args.out.resolve(), _parameters(args.profile, args.set), limit)
    except UserError as error:
        print(f"course.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if importlib.util.find_spec("tinymsg") is None:
        sys.exit("course.py: tinymsg is not installed here; use `make course`, or pip install -e '.[course]'")
    sys.exit(main())

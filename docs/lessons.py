"""Makes of an executed lesson what Sphinx shows: its pictures with their words, code folded, widgets alive."""

import json
import re
from html import escape
from pathlib import Path
from urllib.parse import unquote

import course
from docutils.nodes import SkipNode
from sphinx.application import Sphinx
from sphinx.util import logging

LONG = 12  # lines from which a figure's code is folded
STILL = '<p class="still">Runs live in JupyterLab (make lab).</p>'
FIRST = """<!DOCTYPE html>
<html lang="en"><title>{0}</title><meta http-equiv="refresh" content="0; url={1}"><a href="{1}">{0}</a></html>
"""


def slug(heading: str) -> str:
    """The anchor of a heading: one for the spellings of GitHub (`the-question`) and of Jupyter (`The-question`)."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", unquote(heading).lower())).strip("-") or "section"


def summary(cell) -> str:
    """What is said of code that is plumbing (set-up, widgets, long code of a figure that defines nothing), or ""."""
    source, count = cell.source, len(cell.source.splitlines())
    kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
    if course.VIEW in kinds or source.startswith("# explore"):
        what = "Code of this widget"
    elif (
        {"parameters", "install"} & set(cell.metadata.get("tags", []))
        or not re.search(r"^(?!import |from |SIZES = |[ })]|$)", source, re.M)
        or (count > LONG and re.match("import |from ", source))
    ):
        what = "Set-up"
    elif kinds & set(course.PICTURES) and count > LONG and not re.search("^(def|class) ", source, re.M):
        what = "Code of this figure"
    else:
        return ""
    return f"{what} ({count} line{'s' * (count > 1)})"


def drawn(output) -> dict:
    """The output's forms; a picture gets its alternative text, a widget the place that widgets.js draws it in."""
    data = output.data
    html = ""
    for kind in [kind for kind in course.PICTURES if kind in data][:1]:
        alt = escape(output.metadata.get(kind, {}).get("alt", ""))
        html = f'<img alt="{alt}" src="data:{kind};base64,{data[kind].strip()}">'
    if course.VIEW in data:
        html = f'<div data-widget="{escape(data[course.VIEW]["model_id"])}">{html or STILL}</div>'
    return {"text/html": html} if html else data


def read_lesson(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the executed lesson in the place of the committed one."""
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return
    executed = Path(app.srcdir) / app.config.executed / path.name
    if executed.exists():
        app.env.note_dependency(executed)
    else:
        logging.getLogger(__name__).warning("%s is not there: run `make course` first", executed)
    notebook = course.read(executed if executed.exists() else path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # JupyterLab knows other anchors than we
            cell.source = re.sub(r"(?<=\.ipynb#)[^)\s]+", lambda match: slug(match[0]), cell.source)
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.setdefault("tags", [])
        if "injected-parameters" in tags:
            tags.append("remove-cell")
        cell.source = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")  # for tools, not for readers
        if said := summary(cell):
            tags.append("hide-input")
            cell.metadata["mystnb"] = {"code_prompt_show": said}
        if not any(re.search(r"\S {2,}\S", output.get("text", "")) for output in cell.outputs):
            tags.append("prose")  # no columns: its lines may be wrapped
        for output in cell.outputs:
            if "data" in output:
                output.data = drawn(output)
    source[0] = json.dumps(notebook)


def visit_math(self, node) -> None:
    """A formula as MathML, which browsers draw by themselves; one line, or a block that scrolls where it is wide."""
    block = node.tagname == "math_block"
    formula = course.mathml(node.astext(), "block" if block else "inline")
    self.body.append(f'<div class="formula" tabindex="0">{formula}</div>' if block else formula)
    raise SkipNode


def first_page(app: Sphinx, failed: Exception | None) -> None:
    """A first page where browsers look for one: it leads on to that of docs/."""
    if not failed and app.builder.name == "html":
        text = FIRST.format(app.config.project, app.builder.get_target_uri(app.config.root_doc))
        (Path(app.outdir) / "index.html").write_text(text)


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("source-read", read_lesson)
    app.connect("build-finished", first_page)

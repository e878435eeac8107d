"""The static site of the course, a folder that needs no server and no other host."""

import argparse
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

import course
import jinja2
import site_reader
from course import HERE, PICTURES, PROFILES, RUNS, STATE, VIEW, UserError, read

ROOT = HERE.parent
PARTS = HERE / "site"  # template, style and script of the pages
OUT = ROOT / "runs" / "site"
LONG = 12  # lines from which a figure's code is folded
SHOWN = (".html", ".txt", ".json", ".csv", ".png", ".jpg", ".svg", ".pdf")  # what a browser shows by itself


@dataclass
class Page:
    """One page: the file it is made of, its name on the site, and what the others say about it."""

    source: Path
    name: str
    title: str
    body: str
    short: str = ""  # in the navigation
    summary: str = ""
    minutes: tuple[int, int] | None = None
    state: str = ""  # saved widgets, as JSON
    headings: list[tuple[int, str, str]] = field(default_factory=list)  # level, anchor, HTML


# --- executed lessons ---------------------------------------------------------------------------------------


def is_fresh(lesson: Path, executed: Path, profile: str) -> bool:
    """Whether `executed` is this lesson, run to its end in this profile after the last change of what it uses."""
    if not executed.exists():
        return False
    used = [
        path
        for path in (ROOT / "tinymsg").rglob("*")
        if path.suffix in (".py", ".json", ".safetensors", ".csv", ".toml")
    ]
    used += [
        lesson,
        *lesson.parent.glob("results/*"),
        *lesson.parent.glob("*.png"),
    ]  # the last: a learner's own photograph
    newest = max(path.stat().st_mtime for path in used)
    notebook = read(executed)
    injected = [c.source for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    whole = all(c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source.strip())
    failed = notebook.metadata.get("papermill", {}).get("exception")
    return executed.stat().st_mtime >= newest and whole and not failed and f'PROFILE = "{profile}"' in "".join(injected)


def executed_lessons(lessons: list[Path], folder: Path, profile: str) -> dict[Path, Path]:
    """{lesson: its executed notebook in `folder`}; runs those that are not there or out of date."""
    stale = [lesson for lesson in lessons if not is_fresh(lesson, folder / lesson.name, profile)]
    if stale:
        report = folder / "results.json"
        before = json.loads(report.read_text()) if report.exists() else {}
        failed = course.run(stale, folder, {"PROFILE": profile}, None if profile in ("gpu", "full") else 900)
        report.write_text(json.dumps(before | json.loads(report.read_text()), indent=1) + "\n")
        if failed:
            raise UserError("a lesson failed, as said above: no site was made")
    return {lesson: folder / lesson.name for lesson in lessons}


# --- from cells to HTML -------------------------------------------------------------------------------------


def cell_html(cell) -> str:
    """A cell as HTML: prose, or code with its outputs."""
    if cell.cell_type == "markdown":
        return course.markdown_html(cell.source, cell.get("attachments"))
    if cell.cell_type != "code" or not cell.source.strip() or "injected-parameters" in cell.metadata.get("tags", []):
        return ""
    outputs = []
    for output in cell.outputs:  # where a kernel cuts what is printed into pieces depends on timing
        if outputs and output.output_type == outputs[-1].output_type == "stream" and output.name == outputs[-1].name:
            outputs[-1].text += output.text
        else:
            outputs.append(output)
    return f'<div class="cell">{code_html(cell)}{"".join(map(output_html, outputs))}</div>'


def code_html(cell) -> str:
    """The code, folded where it is plumbing: set-up, widgets, long code of a figure that defines nothing."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    source = re.sub(r"^# NBVAL_CHECK_OUTPUT\n|$", "", cell.source, flags=re.M)  # for tools, not for readers
    code = highlight(source, PythonLexer(), HtmlFormatter())
    code = re.sub(
        r'<span class="(?![ksmc]|nf"|nc"|ow"|bp")\w+">([^<]*)</span>', r"\1", code
    )  # what site.css leaves plain
    count, kinds = len(source.splitlines()), {kind for output in cell.outputs for kind in output.get("data", {})}
    if VIEW in kinds or re.match("# explore", source):
        what = "Code of this widget"
    elif (
        "parameters" in cell.metadata.get("tags", [])
        or not re.search(r"^(?!import |from |SIZES = |[ })]|$)", source, re.M)
        or (count > LONG and re.match("import |from ", source))
    ):
        what = "Set-up"
    elif kinds & set(PICTURES) and count > LONG and not re.search("^(def|class) ", source, re.M):
        what = "Code of this figure"
    else:
        return code
    return f"<details><summary>{what} ({count} line{'s' * (count > 1)})</summary>{code}</details>"


def output_html(output) -> str:
    """An output as HTML, in the richest of its forms that needs no kernel."""
    from nbconvert.filters import strip_ansi

    data = output.get("data", {})
    text = "\n".join(output.get("traceback", [])) or output.get("text", data.get("text/plain", ""))
    aligned = ' class="aligned"' if re.search(r"\S {2,}\S", text) else ""  # columns: such lines are not wrapped
    html = f"<pre{aligned}>{escape(strip_ansi(text))}</pre>"
    for kind in reversed([kind for kind in PICTURES if kind in data]):
        alt = escape(output.metadata.get(kind, {}).get("alt", ""))
        html = f'<img alt="{alt}" src="data:{kind};base64,{data[kind].strip()}">'
    if VIEW in data:
        still = html if html.startswith("<img") else "<p class=still>Runs live in JupyterLab (make lab).</p>"
        html = f'<div data-widget="{escape(data[VIEW]["model_id"])}">{still}</div>'
    elif "text/markdown" in data:
        html = course.markdown_html(data["text/markdown"])
    elif "text/html" in data:
        html = data["text/html"]
    return f'<div class="output">{html}</div>'


def slug(heading: str) -> str:
    """The anchor of a heading: one for the spellings of GitHub (`the-question`) and of Jupyter (`The-question`)."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", unquote(heading).lower())).strip("-") or "section"


def plain(html: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", "", html)).split())


def with_anchors(page: Page) -> None:
    """Give each heading an anchor of its own, and note it for the table of contents."""
    taken: dict[str, int] = {}

    def heading(match: re.Match) -> str:
        level, inner = int(match[1]), re.sub(r'<a class="anchor(-link)?".*?</a>|</?a\b[^>]*>', "", match[2])
        anchor = slug(plain(inner))
        taken[anchor] = taken.get(anchor, -1) + 1
        anchor += f"-{taken[anchor]}" if taken[anchor] else ""
        page.headings.append((level, anchor, inner))
        link = f' <a class="anchor" href="#{anchor}" aria-label="Link to this section">#</a>' if level > 1 else ""
        return f'<h{level} id="{anchor}">{inner}{link}</h{level}>'

    page.body = re.sub(r"<h([1-6])\b[^>]*>(.*?)</h\1>", heading, page.body, flags=re.S)
    page.body = re.sub(
        r'<math\b[^>]*display="block".*?</math>', r'<span class="formula">\g<0></span>', page.body, flags=re.S
    )
    page.body = page.body.replace(" ± ", "\u00a0±\u00a0")  # an interval stays on one line
    page.body = page.body.replace("<table", '<div class="scroll"><table').replace("</table>", "</table></div>")


# --- pages --------------------------------------------------------------------------------------------------


def lesson_table(readme: str) -> dict[str, tuple[str, str]]:
    """{notebook: (short title, what you will do)} of the README's table of lessons."""
    rows = re.findall(r"^\| \[[^]]*\]\(notebooks/([^)]+\.ipynb)\) \| ([^|]+?) \| ([^|]+?) \|", readme, flags=re.M)
    return {name: (title, f"You will {text}.") for name, title, text in rows}


def reading_minutes(opening: str) -> tuple[int, int] | None:
    """(least, most) minutes that a lesson's first cell states."""
    found = re.search(r"\bTime\b.*?(\d+)(?: (?:to|–|-) (\d+))?\s*min", opening, re.S)
    found = found or re.search(r"(\d+)(?: (?:to|–|-) (\d+))?\s*min", opening)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def first_sentence(html: str) -> str:
    paragraph = re.search(r"<p>(.*?)</p>", html, re.S)
    return re.match(r".*?(?:[.?]|$)(?=\s|$)", plain(paragraph[1]))[0] if paragraph else ""


def lesson_page(lesson: Path, executed: Path, table: dict[str, tuple[str, str]]) -> Page:
    """The page of an executed lesson."""
    notebook = read(executed)
    page = Page(lesson, f"{lesson.stem}.html", lesson.stem, "\n".join(map(cell_html, notebook.cells)))
    with_anchors(page)
    opening = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    page.title = next((plain(html) for level, _, html in page.headings if level == 1), lesson.stem)
    short, page.summary = table.get(lesson.name, (re.sub(r"^\d+ · |:.*", "", page.title), first_sentence(page.body)))
    page.short = f"{lesson.stem[:2]} · {short}"
    page.minutes = reading_minutes(opening)
    state = notebook.metadata.get("widgets", {}).get(STATE)
    page.state = json.dumps(state).replace("</", "<\\/") if state else ""
    return page


def markdown_page(source: Path, text: str, name: str = "") -> Page:
    """The page of a Markdown file."""
    page = Page(source, name or f"{source.stem.lower()}.html", source.stem.title(), course.markdown_html(text))
    with_anchors(page)
    page.title = page.short = next((plain(html) for level, _, html in page.headings if level == 1), page.title)
    page.summary = first_sentence(page.body)
    return page


def index_page(readme: Path, pages: list[Page]) -> Page:
    """The first page: what the README says before and in its section Start, and between the two the list of pages."""
    text = readme.read_text()
    before = re.split(r"^(?=## )", text, maxsplit=1, flags=re.M)[0]
    start = re.search(r"^## Start\n.*?(?=^## |\Z)", text, re.M | re.S)
    timed = [page.minutes for page in pages if page.minutes]
    hours = [f"{round(sum(minutes) / 30) / 2:g}" for minutes in zip(*timed, strict=True)]
    listing = _environment().get_template("list.html").render(pages=pages, hours=" to ".join(dict.fromkeys(hours)))
    page = markdown_page(readme, f"{before}\n<!-- list -->\n\n{start[0] if start else ''}", "index.html")
    page.body = page.body.replace("<!-- list -->", listing)
    page.headings, page.short = [], "Overview"
    with_anchors(page)
    return page


def rewrite_links(page: Page, pages: list[Page], root: Path, out: Path) -> None:
    """Point links to lessons and Markdown files at their pages; files of the repository that are linked come along."""
    by_source = {p.source.resolve(): p.name for p in pages}

    def rewrite(match: re.Match) -> str:
        before, link = match[1], unescape(match[2])
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link, re.I):
            return match[0]
        path, _, fragment = link.partition("#")
        target = (page.source.parent / unquote(path)).resolve() if path else page.source.resolve()
        anchor = f"#{slug(fragment)}" if fragment else ""
        if target in by_source:
            return f'{before}"{by_source[target] if path else ""}{anchor}"'
        if not (target.is_file() and target.is_relative_to(root.resolve())):
            return match[0]  # check_site says so
        name = target.relative_to(root.resolve()).as_posix()
        name += "" if target.suffix.lower() in SHOWN else ".txt"
        (out / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, out / "files" / name)
        return f'{before}"files/{name}"'

    page.body = re.sub(r'(<(?:a|img)\b[^>]*?\b(?:href|src)=)"([^"]*)"', rewrite, page.body)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# --- the site -----------------------------------------------------------------------------------------------


def build_site(lessons: dict[Path, Path], markdown: list[Path], readme: Path, out: Path) -> list[str]:
    """Write the site to the folder `out`, in the place of an older one; what is wrong with it, in sentences.

    Args:
        lessons: {lesson: its executed notebook}, in the order of the course.
        markdown: further pages.
        readme: gives the first page's text and the table of lessons; links may lead to files beside and below it.
    """
    if out.exists() and any(out.iterdir()) and not (out / "assets" / "search.js").exists():
        raise UserError(f"{out} is not empty and holds no site of ours: choose another folder with --out")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "assets").mkdir(parents=True)
    table = lesson_table(readme.read_text())
    pages = [lesson_page(lesson, executed, table) for lesson, executed in lessons.items()]
    pages += [markdown_page(path, path.read_text()) for path in markdown]
    pages = [index_page(readme, pages), *pages]
    template = _environment().get_template("page.html")
    entries = []
    for number, page in enumerate(pages):
        rewrite_links(page, pages, readme.parent, part)
        around = {"previous": pages[number - 1] if number else None, "next": (pages + [None])[number + 1]}
        (part / page.name).write_text(template.render(page=page, pages=pages, **around))
        entries += site_reader.search_entries(page.name, page.short, page.body)
    (part / "assets" / "search.js").write_text(f"window.searchEntries = {json.dumps(entries, ensure_ascii=False)};\n")
    for file in (PARTS / "site.css", PARTS / "site.js", HERE / "widgets.css", HERE / "widgets.js"):
        shutil.copy(file, part / "assets")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return site_reader.site_problems(out)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="website.py", description=__doc__)
    parser.add_argument(
        "--profile", choices=PROFILES, default="cpu", help="in which lessons are run (default: %(default)s)"
    )
    parser.add_argument(
        "--course",
        type=Path,
        default=RUNS,
        metavar="FOLDER",
        help="executed lessons; those missing or out of date are run (default: runs/course)",
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="default: runs/site")
    args = parser.parse_args(arguments)
    try:
        lessons = executed_lessons(course.lessons(), args.course.resolve(), args.profile)
        problems = build_site(lessons, sorted(HERE.glob("*.md")), ROOT / "README.md", args.out.resolve())
    except UserError as error:
        print(f"website.py: {error}", file=sys.stderr)
        return 2
    for sentence in problems:
        print(sentence)
    print(f"site: {args.out / 'index.html'}" + (f", {len(problems)} problem(s), as said above" if problems else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

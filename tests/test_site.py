"""The site: what Sphinx is given, its links, what it needs from elsewhere (nothing), and its look in a browser."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

import course
import lessons
import nbformat
import nbformat.v4 as v4
import pytest
from conftest import ROOT
from PIL import Image
from test_browser import BROWSER, OTHER_KINDS, explorers, move_all, new_page
from test_house import METHOD, ROOMS
from test_notebooks import LESSONS, smoke_run

COLORS = ("red", "green", "blue")
INDEX = """# dots
A course on [dots](../notebooks/01_dot.ipynb), with its [licence](../LICENSE).

![three dots](../notebooks/results/dots.png)

```{toctree}
:glob:

/notebooks/*
```
"""
FIRST = """# 01 · Dots, and what they are
After this lesson you can see dots. **Time** 20 to 30 minutes, 0.1 GB.

Go on to [the next lesson](02_line.ipynb#A-long-road), or look up a [dot](WORDS.md#dot)."""
LONG = f"""## A long road
$$y_t = \\sqrt{{\\bar\\alpha_t}} y_0 {"+ y_t" * 60}$$

| a | b |
|---|---|
| {"wide " * 9} | {"_".join(["unbreakable"] * 20)} |

```python
{"x = 1; " * 40}
```
"""


def png(color: str) -> str:
    """A small picture, base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (300, 60), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def dot_widget() -> tuple[dict, dict]:
    """(bundle of an output, saved widget state) of a slider over three pictures, as a run lesson holds them."""
    import ipywidgets
    from ipywidgets.embed import embed_data

    pictures = [
        ipywidgets.HTML(f'<img alt="a {color} dot" src="data:image/png;base64,{png(color)}">') for color in COLORS
    ]
    slider, stack = (
        ipywidgets.SelectionSlider(options=COLORS, description="color"),
        ipywidgets.Stack(pictures, selected_index=0),
    )
    link = ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    view = ipywidgets.VBox([slider, stack])
    state = embed_data(views=[view, link], drop_defaults=False)["manager_state"]
    return {course.VIEW: {"model_id": view.model_id}, "image/png": png("red"), "text/plain": "a dot"}, state


def live_widget() -> tuple[dict, dict]:
    """The same of a panel that computes in the kernel."""
    import torch
    from ipywidgets.embed import embed_data

    from tinymsg.course.live import LivePanel

    panel = LivePanel(
        lambda level: iter([(1, 1, torch.full((1, 9, 9), level), "a square")]), {"level": (0.0, 1.0, 0.1)}, instant=True
    )
    state = embed_data(views=[panel.view], drop_defaults=False)["manager_state"]
    return {course.VIEW: {"model_id": panel.view.model_id}, "image/png": png("green"), "text/plain": "a square"}, state


def notebook(*cells, state: dict) -> nbformat.NotebookNode:
    metadata = {"kernelspec": course.KERNEL, "language_info": course.LANGUAGE, "widgets": {course.STATE: state}}
    return v4.new_notebook(cells=list(cells), metadata=metadata)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A little course: first page, two lessons that are run, a Markdown page, a picture."""
    root = tmp_path_factory.mktemp("repository")
    (root / "docs").mkdir()
    (root / "notebooks" / "results").mkdir(parents=True)
    (root / "docs" / "index.md").write_text(INDEX)
    (root / "LICENSE").write_text("Do as you like.")
    (root / "notebooks" / "results" / "dots.png").write_bytes(base64.b64decode(png("blue")))
    (root / "notebooks" / "WORDS.md").write_text(
        "# Words\nWhat the zyzzyva says.\n\n## Dot\nSee [the start](01_dot.ipynb).\n"
    )
    bundle, state = dot_widget()
    widget = v4.new_output("display_data", data=bundle, metadata={"image/png": {"alt": "a red dot"}})
    text = [v4.new_output("stream", text=piece) for piece in ("1    2    3\n", "<b> & such\n")]  # as it is printed
    first = notebook(
        v4.new_markdown_cell(FIRST),
        v4.new_code_cell('PROFILE = "gpu"', metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell("# explore\nshow()", outputs=[widget]),
        v4.new_code_cell("# NBVAL_CHECK_OUTPUT\nprint('a_name')", outputs=text),
        state=state,
    )
    bundle, state = live_widget()
    live = v4.new_output("display_data", data=bundle, metadata={"image/png": {"alt": "a square"}})
    second = notebook(
        v4.new_markdown_cell("# 02 · Lines\nTime: 30 minutes."),
        v4.new_markdown_cell(LONG),
        v4.new_code_cell("# explore\nlive()", outputs=[live]),
        state=state,
    )
    nbformat.write(first, root / "notebooks" / "01_dot.ipynb")
    nbformat.write(second, root / "notebooks" / "02_line.ipynb")
    return root


def build(root: Path, out: Path, executed: Path | None = None, **environment) -> list[str]:
    """Make the site of the repository `root` as `make site` does; what Sphinx warns of (-W makes errors of it)."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-E", "-c", ROOT / "docs", "-d", out.with_name("doctrees"), root, out]
        + ["-D", f"executed={executed or root / 'notebooks'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore", "TINYMSG_REPOSITORY": ""} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "site"
    assert build(repository, out) == []
    return out


@pytest.fixture(scope="module")
def committed_site(tmp_path_factory) -> Path:
    """The site of the lessons as they are committed: outputs and pictures, no widget state."""
    out = tmp_path_factory.mktemp("committed") / "site"
    assert build(ROOT, out) == []
    return out


# --- finished pages -----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects of one page: anchors, links, pictures and what it loads."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str | None] = []  # alternative texts
        self.loads: list[str] = []
        self._state = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self._state = given.get("type") == course.STATE
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "img":
            self.pictures.append(given.get("alt"))
        self.loads += [given[key] for key in ("src", "data", "poster") if given.get(key)]
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])

    def handle_data(self, data: str) -> None:
        if self._state and data.strip():  # a widget's pictures are in its saved state
            values = [model["state"].get("value") for model in json.loads(data)["state"].values()]
            self.pictures += [
                alt for value in values if isinstance(value, str) and "<img" in value for alt in Reader(value).pictures
            ]


def site_problems(folder: Path) -> list[str]:
    """A sentence for each broken link or anchor, picture without text, and address of another host."""
    pages = {path.resolve(): Reader(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    pages = {path: page for path, page in pages.items() if "_static" not in path.parts}  # the theme's own templates
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve()).as_posix()
        found += [f"{name}: a picture has no alternative text" for alt in page.pictures if not (alt or "").strip()]
        for address in [*page.links, *page.loads]:
            if re.match(r"[a-z][a-z0-9+.-]*:|//", address, re.I):
                if address in page.loads and not address.startswith("data:"):
                    found.append(f"{name}: loads {address} from another host")
                continue
            place, _, anchor = address.partition("#")
            target = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            if not target.is_file():
                found.append(f"{name}: {address} leads nowhere")
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                found.append(f"{name}: {address} leads to an anchor that is not there")
    for path in sorted(folder.rglob("*.css")):
        outside = re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^)]*", path.read_text())
        found += [f"{path.relative_to(folder).as_posix()}: loads {address}" for address in outside]
    return found


def test_no_link_is_broken_and_nothing_comes_from_another_host(site):
    assert site_problems(site) == []


def test_a_reader_of_pages_sees_what_is_wrong(site, tmp_path):
    copy = shutil.copytree(site, tmp_path / "site")
    page = copy / "notebooks" / "WORDS.html"
    bad = '<a href="01_dot.html#gone"></a><a href="gone.html"></a><img src="//x.invalid"><script src="no.js"></script>'
    page.write_text(page.read_text().replace("zyzzyva", bad))
    (copy / "_static" / "site.css").write_text("@import 'https://x.invalid/y.css'; a { background: url(../y.png) }")
    assert len(site_problems(copy)) == 6


def test_lessons_are_drawn_for_readers(site):
    first, second = ((site / "notebooks" / f"{name}.html").read_text() for name in ("01_dot", "02_line"))
    assert "Code of this widget (2 lines)" in first and "NBVAL" not in first and '"gpu"' not in first
    assert '<img alt="a red dot" src="data:image/png' in first and "SelectionSliderModel" in first
    assert "1    2    3\n&lt;b&gt; &amp; such\n" in first  # two pieces, one output
    assert "<math" in second and "<script>MathJax" not in second and "mathjax.js" not in second


def test_links_lead_to_pages_and_linked_files_come_along(site):
    first, index = (site / "notebooks" / "01_dot.html").read_text(), (site / "docs" / "index.html").read_text()
    assert 'href="02_line.html#a-long-road"' in first and 'href="WORDS.html#dot"' in first
    assert (
        "../notebooks/01_dot.html" in index and 'content="0; url=docs/index.html"' in (site / "index.html").read_text()
    )
    (licence,) = re.findall(r'href="\.\./(_downloads/[^"]*LICENSE)"', index)
    assert (site / licence).read_text() == "Do as you like."


def test_each_defect_is_told_and_one_setting_makes_the_buttons(repository, tmp_path):
    root = shutil.copytree(repository, tmp_path / "copy")
    (root / "docs" / "api").mkdir()
    (root / "docs" / "api" / "dot.md").write_text(
        "---\norphan: true\n---\n# Dot\n```{py:function} dot(x: Nowhere, y: int) -> torch.Tensor\n```\n"
    )
    for file, old, new in (
        ("notebooks/WORDS.md", "01_dot.ipynb", "09_dot.ipynb"),
        ("notebooks/01_dot.ipynb", "02_line.ipynb#A-long", "02_line.ipynb#A-short"),
        ("docs/index.md", "results/dots.png", "results/gone.png"),
    ):
        assert old in (root / file).read_text()
        (root / file).write_text((root / file).read_text().replace(old, new))
    told = build(root, tmp_path / "site", TINYMSG_REPOSITORY="https://github.com/someone/something")
    assert len(told) == 4
    for name in ("gone.png", "Nowhere", "a-short-road", "09_dot.ipynb"):
        assert sum(name in sentence for sentence in told) == 1, name
    page = (tmp_path / "site" / "notebooks" / "01_dot.html").read_text()
    place = "someone/something/blob/main/notebooks/01_dot.ipynb"
    assert f"https://colab.research.google.com/github/{place}" in page and "mybinder.org" in page


@pytest.mark.parametrize(
    ("code", "folded"),
    [
        ("import torch\nfrom torch import (\n    Tensor,\n)", True),
        ('SIZES = {\n    "cpu": 1,\n}[PROFILE]', True),
        ("import torch\n\nx = torch.ones(3)", False),
        ("import torch\n" + "x = 1\n" * lessons.LONG, True),
        ("x = 1\nimport torch", False),
    ],
)
def test_set_up_is_folded(code, folded):
    assert lessons.summary(v4.new_code_cell(code)).startswith("Set-up") == folded
    assert lessons.summary(*course.with_install([])).startswith("Set-up")


def test_one_anchor_for_the_spellings_of_github_and_jupyter():
    heading = "1.2 From the camera's path · `to` the kernel"
    assert lessons.slug(heading) == "12-from-the-cameras-path-to-the-kernel"
    assert lessons.slug("1.2-From-the-camera's-path-·-to-the-kernel") == lessons.slug(heading)


# --- functions and classes ----------------------------------------------------------------------------------


def test_every_file_of_the_method_and_every_room_has_its_page():
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    assert pages == {*METHOD, *ROOMS} - {"__init__", "__main__", "cli"}  # the command line tells of itself: --help


def test_docstrings_become_fields():
    from docstrings import docstring

    lines = ["Does *so*.", "", "    y = x_t |a|", "", "Args:", "    x, y: (b,), `a_`", "        and more."]
    lines += ["Returns: b. Raises: ValueError on", "c.", ""]
    docstring(None, "function", "", None, None, lines)
    assert [line for line in lines if line] == [
        r"Does \*so\*.",
        "::",
        "    y = x_t |a|",
        ":param x,y: (b,), `a_`",
        "    and more.",
        ":returns: b.",
        ":raises ValueError: on",
        "    c.",
    ]


@pytest.mark.course
def test_the_committed_lessons_and_the_library_make_a_site_without_a_broken_link(committed_site):
    assert site_problems(committed_site) == []
    page = (committed_site / "docs" / "api" / "schedule.html").read_text()
    assert page.count('title="tinymsg.schedule.Image"') > 3  # types by their names, which lead to what they are
    assert str(ROOT) not in page


# --- which lessons are run ----------------------------------------------------------------------------------


def test_lessons_are_run_once_and_again_when_something_is_newer(tmp_path, capsys):
    folder, lesson = tmp_path / "course", tmp_path / "01_dot.ipynb"
    executed = folder / lesson.name
    parameters = v4.new_code_cell('PROFILE = "cpu"', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(FIRST), parameters], metadata=kernel), lesson)
    command = ["run", "--stale", "--profile", "smoke", "--out", str(folder), str(lesson)]
    with mock.patch.dict(os.environ):
        assert course.main(command) == 0
    assert "01_dot" in capsys.readouterr().out
    assert course.is_fresh(lesson, executed, "smoke") and not course.is_fresh(lesson, executed, "cpu")
    with mock.patch.object(course, "run", side_effect=AssertionError("run again")):
        assert course.main(command) == 0
    results, later = tmp_path / "results" / "scores.json", executed.stat().st_mtime + 5
    results.parent.mkdir()
    results.write_text("{}")
    os.utime(results, (0, 0))
    for changed in (lesson, results):
        before = changed.stat().st_mtime
        os.utime(changed, (later, later))
        assert not course.is_fresh(lesson, executed, "smoke")
        os.utime(changed, (before, before))
    assert course.is_fresh(lesson, executed, "smoke")


# --- in a browser -------------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")


@pytest.fixture
def page():
    """A page of a browser in the light theme; what it asked for is in page.asked, its errors in page.errors."""
    with new_page(viewport={"width": 1366, "height": 768}, color_scheme="light") as page:
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page


def overflow(page) -> int:
    """Pixels by which the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.browser
@in_browser
def test_a_reader_moves_a_slider_searches_and_reads_in_the_dark(site, page):
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/docs/index.html")
    page.goto((site / "notebooks" / "01_dot.html").as_uri())
    assert page.locator("[data-widget] img:visible").get_attribute("alt") == "a red dot"
    page.locator("[data-widget]").get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    page.locator("[data-widget] img[alt='a green dot']").wait_for()
    assert page.locator("[data-widget] img:visible").count() == 1

    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.get_by_role("button", name="Color mode").click()
    page.get_by_role("button", name="Dark").click()
    dark = ground()
    page.reload()
    assert light != dark == ground()  # remembered
    assert page.errors == []

    page.keyboard.press("Control+k")
    page.keyboard.type("ZYZZYVA")
    page.keyboard.press("Enter")
    page.locator("#search-results a", has_text="Words").first.click()
    page.wait_for_url("**/WORDS.html*")
    assert all(url.startswith(("file:", "data:")) for url in page.asked)


@pytest.mark.course
@pytest.mark.browser
@in_browser
def test_a_panel_that_computes_keeps_its_picture_and_says_where_it_runs(site, repository, page, tmp_path):
    """On the site and in a lesson's own HTML; and a widget that is alive says nothing."""
    exported = [
        course.to_html(Path(shutil.copy(path, tmp_path))) for path in sorted((repository / "notebooks").glob("*.ipynb"))
    ]
    for alive, live in (exported, sorted((site / "notebooks").glob("0*.html"))):
        page.goto(live.as_uri())
        place = page.locator("[data-widget]")
        assert place.inner_text().strip() == "Runs live in JupyterLab (make lab)."
        assert place.locator("img:visible").get_attribute("alt") == "a square"
        assert place.locator("input, button").count() == 0, "nothing that would do nothing"
        page.goto(alive.as_uri())
        place = page.locator("[data-widget]")
        assert place.get_by_role("slider").count() == 1 and "make lab" not in place.inner_text()
    assert page.errors == []


@pytest.mark.course
@pytest.mark.browser
@in_browser
def test_no_page_is_wider_than_the_window(site, committed_site, page):
    for width in (1920, 1366, 390):
        page.set_viewport_size({"width": width, "height": 900})
        pages = [*site.glob("*/*.html"), *(committed_site.rglob("[!i]*.html") if width == 390 else [])]
        for path in [path for path in pages if "_modules" not in path.parts]:
            page.goto(path.as_uri())
            assert overflow(page) <= 0, (path.name, width)
    page.goto((site / "notebooks" / "02_line.html").as_uri())  # its table, formula and code scroll by themselves
    for box in (".pst-scrollable-table-container", ".formula", ".highlight pre"):
        assert page.locator(box).first.evaluate("box => box.scrollWidth > box.clientWidth && box.tabIndex === 0"), box
    assert page.errors == []


def buttons_of(view: str, state: dict) -> set[str]:
    """Names of the buttons within a saved widget."""
    saved, names, todo = state["state"], set(), [view]
    while todo:
        model = saved[todo.pop()]
        if model["model_name"] in ("ButtonModel", "FileUploadModel"):
            names.add(model["state"]["description"])
        todo += [child.removeprefix("IPY_MODEL_") for child in model["state"].get("children", [])]
    return names


@pytest.mark.course
@pytest.mark.browser
@in_browser
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_control_of_a_lesson_moves_without_a_kernel(lesson, page, tmp_path, tmp_path_factory):
    problem, executed = smoke_run(lesson, tmp_path_factory)
    assert problem is None
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Alone\n```{{toctree}}\n/notebooks/{lesson.stem}\n```\n")
    shutil.copytree(course.HERE, tmp_path / "notebooks", ignore=shutil.ignore_patterns("[!0]*.py"))
    build(tmp_path, tmp_path / "site", executed.parent)
    page.goto((tmp_path / "site" / "notebooks" / f"{lesson.stem}.html").as_uri())

    state = course.read(executed).metadata.get("widgets", {}).get(course.STATE)  # a lesson may have none
    moving = 0
    for view in page.locator("[data-widget]").all():
        if buttons_of(view.get_attribute("data-widget"), state) & set(
            OTHER_KINDS
        ):  # it computes: a still picture, and a word on it
            assert view.locator("img[alt]:visible").count() == 1 and "JupyterLab" in view.inner_text()
            continue
        assert move_all(page, view, "input[type=range]", "[role=group]") > 0, view.inner_text()
        moving += 1
    assert moving == explorers(course.read(lesson))
    assert page.errors == [] and all(url.startswith(("file:", "data:")) for url in page.asked)

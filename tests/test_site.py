"""The static site: its links, its search, what it needs from elsewhere (nothing), and its look in a browser."""

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import course
import nbformat
import nbformat.v4 as v4
import pytest
import site_reader
import website
from PIL import Image
from test_browser import BROWSER, OTHER_KINDS, explorers, move_all, new_page
from test_notebooks import LESSONS, smoke_run

COLORS = ("red", "green", "blue")
README = """# dots
A course on [dots](notebooks/01_dot.ipynb).

![three dots](notebooks/results/dots.png)

## Start

`make course`, and see the [licence](LICENSE).

## The lessons

| | | you will |
|---|---|---|
| [01](notebooks/01_dot.ipynb) | Dots | see a dot |
| [02](notebooks/02_line.ipynb) | Lines | draw a line |

## Licence
None of this is on the site.
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


def notebook(*cells, state: dict | None = None) -> nbformat.NotebookNode:
    return v4.new_notebook(cells=list(cells), metadata={"widgets": {course.STATE: state}} if state else {})


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A little course: README, two lessons that are run, a Markdown page, a picture."""
    root = tmp_path_factory.mktemp("repository")
    (root / "notebooks" / "results").mkdir(parents=True)
    (root / "README.md").write_text(README)
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
        v4.new_code_cell("# explore\nshow()", outputs=[widget]),
        v4.new_code_cell("print('a_name')", outputs=text),
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


def build(root: Path, out: Path) -> list[str]:
    folder = root / "notebooks"
    lessons = {lesson: lesson for lesson in sorted(folder.glob("*.ipynb"))}
    return website.build_site(lessons, sorted(folder.glob("*.md")), root / "README.md", out)


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "site"
    assert build(repository, out) == []
    return out


@pytest.fixture
def spoilt(repository, tmp_path):
    """spoilt(file, old, new) -> what is said of the site of a course in which that was changed."""

    def change(file: str, old: str, new: str) -> list[str]:
        root = shutil.copytree(repository, tmp_path / "copy")
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new))
        return build(root, tmp_path / "site")

    return change


# --- pages --------------------------------------------------------------------------------------------------


def test_first_page_lists_the_lessons_with_what_the_readme_and_they_themselves_say(site):
    page = (site / "index.html").read_text()
    listed = re.findall(
        r'<li><a href="([^"]+)">([^<]+)</a>\s*(?:<span class="minutes">([^<]+)</span>)?\s*<p>([^<]*)</p>', page
    )
    assert listed == [
        ("01_dot.html", "01 · Dots", "20 to 30 min", "You will see a dot."),
        ("02_line.html", "02 · Lines", "30 min", "You will draw a line."),
        ("words.html", "Words", "", "What the zyzzyva says."),
    ]
    assert "about 1 hours" not in page and "about 1 hour." in page  # 50 to 60 minutes
    assert "<code>make course</code>" in page and "None of this" not in page


def test_every_page_has_navigation_contents_and_the_ways_of_access(site):
    for path in site.glob("*.html"):
        page = path.read_text()
        nav = page.split('<nav aria-label="Pages">')[1].split("</nav>")[0]
        assert re.findall(r'href="([^"]+)"', nav) == ["index.html", "01_dot.html", "02_line.html", "words.html"]
        assert f'href="{path.name}" aria-current="page"' in nav
        assert '<html lang="en">' in page and 'name="viewport"' in page and 'class="skip" href="#text"' in page
    second = (site / "02_line.html").read_text()
    assert re.findall(r'rel="(?:prev|next)" href="([^"]+)"', second) == ["01_dot.html", "words.html"]
    assert '<li class="level2"><a href="#a-long-road">A long road</a></li>' in second


def test_links_between_lessons_lead_to_pages_and_linked_files_come_along(site):
    first, index = (site / "01_dot.html").read_text(), (site / "index.html").read_text()
    assert 'href="02_line.html#a-long-road"' in first and 'href="words.html#dot"' in first
    assert 'href="01_dot.html"' in (site / "words.html").read_text()
    assert 'href="files/LICENSE.txt"' in index and (site / "files" / "LICENSE.txt").read_text() == "Do as you like."
    assert 'src="files/notebooks/results/dots.png"' in index
    assert not any(".ipynb" in path.read_text() for path in site.glob("*.html"))


def test_cells_are_drawn_for_readers(site):
    page = (site / "01_dot.html").read_text()
    assert "<summary>Code of this widget (2 lines)</summary>" in page
    assert '<pre class="aligned">1    2    3\n&lt;b&gt; &amp; such\n</pre>' in page
    assert '<img alt="a red dot" src="data:image/png' in page and "SelectionSliderModel" in page
    assert "<math" in (site / "02_line.html").read_text()


@pytest.mark.parametrize(
    ("code", "folded"),
    [
        ("import torch\nfrom torch import (\n    Tensor,\n)", True),
        ('SIZES = {\n    "cpu": 1,\n}[PROFILE]', True),
        ("import torch\n\nx = torch.ones(3)", False),
        ("import torch\n" + "x = 1\n" * website.LONG, True),
        ("x = 1\nimport torch", False),
    ],
)
def test_set_up_is_folded(code, folded):
    assert ("<summary>Set-up" in website.code_html(v4.new_code_cell(code))) == folded


def test_search_finds_words_of_every_kind_of_page(site):
    text = (site / "assets" / "search.js").read_text()
    entries = json.loads(text.removeprefix("window.searchEntries = ").removesuffix(";\n"))
    found = {
        word: [(e["page"], e["anchor"]) for e in entries if word in f"{e['heading']} {e['text']}"]
        for word in ("zyzzyva", "a_name", "A long road", "a red dot", "Do as you like")
    }
    assert found["zyzzyva"] == [("index.html", "lessons"), ("words.html", "words")]
    assert ("02_line.html", "a-long-road") in found["A long road"]
    assert found["a_name"] == found["a red dot"] == [("01_dot.html", "01-dots-and-what-they-are")]
    assert found["Do as you like"] == []
    assert not any("base64" in entry["text"] or "IPY_MODEL" in entry["text"] for entry in entries)


def test_one_anchor_for_the_spellings_of_github_and_jupyter():
    heading = "1.2 From the camera's path · `to` the kernel"
    assert website.slug(heading) == "12-from-the-cameras-path-to-the-kernel"
    assert website.slug("1.2-From-the-camera's-path-·-to-the-kernel") == website.slug(heading)
    page = website.markdown_page(Path("x.md"), "# A\n## Hint\n## Hint\n")
    assert [anchor for _, anchor, _ in page.headings] == ["a", "hint", "hint-1"]


# --- what is wrong is said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "page", "named"),
    [
        ("notebooks/WORDS.md", "01_dot.ipynb", "09_dot.ipynb", "words.html", "09_dot.ipynb"),
        ("notebooks/01_dot.ipynb", "02_line.ipynb#A-long", "02_line.ipynb#A-short", "01_dot.html", "#a-short-road"),
        ("notebooks/WORDS.md", "What the", "![](results/dots.png) the", "words.html", "results/dots.png"),
        ("README.md", "results/dots.png", "results/gone.png", "index.html", "results/gone.png"),
        ("README.md", "(LICENSE)", "(../outside.txt)", "index.html", "../outside.txt"),
        (
            "notebooks/WORDS.md",
            "What the",
            '<script src="https://cdn.invalid/a.js"></script>',
            "words.html",
            "https://cdn.invalid/a.js",
        ),
        ("notebooks/WORDS.md", "What the", '<a id="dot"></a>', "words.html", "#dot"),
    ],
)
def test_each_defect_is_said_once_with_its_page_and_its_name(spoilt, file, old, new, page, named):
    (sentence,) = spoilt(file, old, new)
    assert sentence.startswith(f"{page}: ") and named in sentence


def test_a_widget_picture_without_text_is_seen(spoilt):
    assert len(spoilt("notebooks/01_dot.ipynb", r"alt=\"a green dot\"", r"alt=\"\"")) == 1


def test_a_style_that_loads_something_is_seen(site, tmp_path):
    copy = shutil.copytree(site, tmp_path / "site")
    (copy / "assets" / "site.css").write_text(
        "@import 'https://x.invalid/y.css'; a { background: url(http://x.invalid/y.png) }"
    )
    assert len(site_reader.site_problems(copy)) == 2


def test_a_folder_that_is_no_site_is_left_alone(repository, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(course.UserError, match="holds no site of ours"):
        build(repository, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_the_committed_lessons_make_a_site_without_a_broken_link(committed_site):
    assert site_reader.site_problems(committed_site) == []


@pytest.fixture(scope="module")
def committed_site(tmp_path_factory) -> Path:
    """The site of the lessons as they are committed: outputs and pictures, no widget state."""
    out = tmp_path_factory.mktemp("committed") / "site"
    lessons = {lesson: lesson for lesson in course.lessons()}
    website.build_site(lessons, sorted(course.HERE.glob("*.md")), website.ROOT / "README.md", out)
    return out


# --- which lessons are run ----------------------------------------------------------------------------------


def test_lessons_are_run_once_and_again_when_something_is_newer(tmp_path, capsys):
    folder, lesson = tmp_path / "course", tmp_path / "01_dot.ipynb"
    parameters = v4.new_code_cell('PROFILE = "cpu"', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(FIRST), parameters], metadata=kernel), lesson)
    with mock.patch.dict(os.environ):
        executed = website.executed_lessons([lesson], folder, "smoke")
    assert "01_dot" in capsys.readouterr().out
    assert website.is_fresh(lesson, executed[lesson], "smoke") and not website.is_fresh(lesson, executed[lesson], "cpu")
    with mock.patch.object(course, "run", side_effect=AssertionError("run again")):
        website.executed_lessons([lesson], folder, "smoke")
    results, later = tmp_path / "results" / "scores.json", executed[lesson].stat().st_mtime + 5
    results.parent.mkdir()
    results.write_text("{}")
    os.utime(results, (0, 0))
    for changed in (lesson, results):
        before = changed.stat().st_mtime
        os.utime(changed, (later, later))
        assert not website.is_fresh(lesson, executed[lesson], "smoke")
        os.utime(changed, (before, before))
    assert website.is_fresh(lesson, executed[lesson], "smoke")


def test_a_lesson_that_fails_makes_no_site(tmp_path):
    (tmp_path / "results.json").write_text('{"00_old.ipynb": {"problem": null}}')

    def run(files, out, parameters, limit):
        (out / "results.json").write_text('{"01_dot.ipynb": {"problem": "a crash"}}')
        return 1

    with mock.patch.object(course, "run", run), pytest.raises(course.UserError, match="no site was made"):
        website.executed_lessons([tmp_path / "01_dot.ipynb"], tmp_path, "smoke")
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"00_old.ipynb", "01_dot.ipynb"}


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
    page.goto((site / "01_dot.html").as_uri())
    assert page.locator("[data-widget] img:visible").get_attribute("alt") == "a red dot"
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    page.locator("[data-widget] img[alt='a green dot']").wait_for()
    assert page.locator("[data-widget] img:visible").count() == 1

    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark").press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.reload()
    assert page.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"  # remembered
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    page.locator("body").press("/")
    page.keyboard.type("words ZYZZYVA")
    page.locator("#results a").first.wait_for()
    assert page.locator("#results mark").first.inner_text() == "zyzzyva"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/words.html#words")
    assert page.errors == [] and all(url.startswith(("file:", "data:")) for url in page.asked)


@pytest.mark.course
@pytest.mark.browser
@in_browser
def test_a_panel_that_computes_keeps_its_picture_and_says_where_it_runs(site, repository, page, tmp_path):
    """On the site and in a lesson's own HTML; and a widget that is alive says nothing."""
    exported = [
        course.to_html(Path(shutil.copy(path, tmp_path))) for path in sorted((repository / "notebooks").glob("*.ipynb"))
    ]
    for alive, live in (exported, (site / "01_dot.html", site / "02_line.html")):
        page.goto(live.as_uri())
        place = page.locator("[data-widget]")
        assert place.inner_text().strip() == "Runs live in JupyterLab (make lab)."
        assert place.locator("img:visible").get_attribute("alt") == "a square"
        assert place.locator("input, button").count() == 0, "nothing that would do nothing"
        page.goto(alive.as_uri())
        assert page.get_by_role("slider").count() == 1 and "make lab" not in page.locator("[data-widget]").inner_text()
    assert page.errors == []


@pytest.mark.course
@pytest.mark.browser
@in_browser
def test_no_page_is_wider_than_the_window(site, committed_site, page):
    for width in (1920, 1366, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for path in [*site.glob("*.html"), *(committed_site.glob("*.html") if width == 390 else [])]:
            page.goto(path.as_uri())
            assert overflow(page) <= 0, (path.name, width)
            assert page.locator("#menu").is_visible() == (width == 390)
    page.goto((site / "02_line.html").as_uri())  # its table, formula and code are wider, and scroll by themselves
    for box in (".scroll", ".formula", ".highlight pre"):
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
    website.build_site(
        {lesson: executed}, [], website.ROOT / "README.md", tmp_path / "site"
    )  # alone: its links lead nowhere
    page.goto((tmp_path / "site" / f"{lesson.stem}.html").as_uri())

    state = course.read(executed).metadata.widgets[course.STATE]
    moving = 0
    for view in page.locator("[data-widget]").all():
        if buttons_of(view.get_attribute("data-widget"), state) & set(
            OTHER_KINDS
        ):  # it computes: a still picture, and a word on it
            assert view.locator("img[alt]:visible").count() == 1 and "JupyterLab" in view.inner_text()
            continue
        assert move_all(page, view, "input[type=range]", "[role=group]") > 0, view.inner_text()
        moving += 1
    assert moving == explorers(course.read(lesson)) > 0
    assert page.errors == [] and all(url.startswith(("file:", "data:")) for url in page.asked)

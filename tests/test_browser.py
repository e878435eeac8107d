"""Every lesson in a real browser: JupyterLab runs it, and every control of every widget changes what is seen."""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import course
import nbformat
import pytest
from PIL import Image

from tinymsg.course.photo import FILE, ONLY_DEFAULT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.course,
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
    "--disable-component-update",
    "--disable-quic",
    "--disable-dev-shm-usage",
]

# Errors and warnings in the outputs
ERRORS = ", ".join(
    f'.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("error", "stderr")
)
VIEWS = ".jp-OutputArea-output:has(> .jupyter-widgets)"
# What stands in a view besides pictures and their controls, by the name of a button in it
OTHER_KINDS = {"Choose a photograph": "upload", "Compute": "live", "First settings": "instant"}
SLIDERS, GROUPS = ".noUi-handle[role=slider]", ".widget-toggle-buttons"


# --- for both tests in a browser: this one and the site's ---------------------------------------------------


def until(page, condition, seconds: float, complaint) -> None:
    """Ask from here, not by a timer in the page, which a busy machine can starve."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"after {seconds} s: {complaint()}")
        page.wait_for_timeout(100)


@contextlib.contextmanager
def new_page(**options):
    """A page of a browser of its own, patient with a busy machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS, timeout=120_000)
        page = browser.new_page(**options)
        page.set_default_timeout(120_000)
        yield page
        browser.close()


SEEN = """view => {
    const pictures = [...view.querySelectorAll("img")].filter(i => i.offsetParent)
    return pictures.every(i => i.complete && i.naturalWidth) ? pictures.map(i => i.src) : []
}"""


def seen(view) -> list[str]:
    """The pictures of a view that can be seen now: all their bytes. None while one of them is still being decoded."""
    return view.evaluate(SEEN)


def steady(page, view) -> list[str]:
    """What is seen of a view once it has been the same for a second: no picture is still on its way."""
    looks = [[]] * 5

    def is_steady() -> bool:
        looks.append(seen(view))
        page.wait_for_timeout(100)  # and `until` as much
        return looks[-1] != [] and all(look == looks[-1] for look in looks[-5:])

    until(page, is_steady, 120, view.inner_text)
    return looks[-1]


def changes(page, view, act, seconds: float = 90, to: list[str] | None = None) -> bool:
    """Whether the pictures that can be seen become others after `act`: those of `to`, if it is given."""
    before, end = seen(view), time.monotonic() + seconds
    act()
    while time.monotonic() < end:
        now = seen(view)
        if now not in ([], before) and to in (None, now):
            return True
        page.wait_for_timeout(20)
    return False


def move_all(page, view, sliders: str, groups: str) -> int:
    """Move each control of a view, there and back, sliders by keyboard and buttons by click: the picture goes along.

    Returns: how many there were. One with a single value, as the small profile has them, cannot be moved.
    """
    moved, first = 0, steady(page, view)
    for slider in view.locator(sliders).all():
        least, most = (
            float(slider.get_attribute(f"aria-value{end}") or slider.get_attribute(end)) for end in ("min", "max")
        )
        if least == most:
            continue
        ways = ["ArrowRight", "ArrowLeft"]
        there, back = (
            ways if float(slider.get_attribute("aria-valuenow") or slider.input_value()) < most else ways[::-1]
        )
        slider.focus()
        assert changes(page, view, partial(page.keyboard.press, there)), (
            f"{view.inner_text()!r}: a slider changes nothing"
        )
        check_pictures(view)
        assert changes(page, view, partial(page.keyboard.press, back), to=first)
        moved += 1
    for group in view.locator(groups).all():
        buttons = group.get_by_role("button").all()
        if len(buttons) == 1:
            continue
        chosen = next(i for i, button in enumerate(buttons) if is_pressed(button))
        other = buttons[(chosen + 1) % len(buttons)]
        assert changes(page, view, other.click), f"{group.inner_text()!r}: a button changes nothing"
        check_pictures(view)
        assert is_pressed(other) and changes(page, view, buttons[chosen].click, to=first)
        moved += 1
    return moved


def is_pressed(button) -> bool:
    return button.get_attribute("aria-pressed") == "true" or "mod-active" in (button.get_attribute("class") or "")


VISIBLE = """view => [...view.querySelectorAll("img")].filter(i => i.offsetParent)
    .map(i => [i.alt, i.getBoundingClientRect().width, i.getBoundingClientRect().height])"""


def check_pictures(view) -> None:
    """What can be seen is a picture, in words too. Asked at one moment: a live panel exchanges its own at any time."""

    def fine() -> bool:
        shown = view.evaluate(VISIBLE)
        return bool(shown) and all(alt and width > 20 and height > 20 for alt, width, height in shown)

    until(view.page, fine, 30, lambda: view.evaluate(VISIBLE))


def explorers(notebook: nbformat.NotebookNode) -> int:
    """How many widgets of pictures that were computed beforehand a lesson has: each needs a control that moves."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return len(re.findall(r"^(?:\w+\.)?(?:frame_explorer|swipe)\(", code, re.M))


def test_the_lessons_have_pictures_to_explore():
    assert sum(explorers(course.read(path)) > 0 for path in course.lessons()) >= 6


# --- JupyterLab ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A copy of the notebooks, all in the smoke profile."""
    folder = tmp_path_factory.mktemp("workspace") / "notebooks"
    shutil.copytree(course.HERE, folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", FILE))
    for path in folder.glob("0*.ipynb"):
        notebook = course.read(path)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None  # what is seen was made now
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub(r'^PROFILE = "cpu"', 'PROFILE = "smoke"', cell.source, flags=re.M)
        nbformat.write(notebook, path)
    return folder


@pytest.fixture(scope="module")
def server(workspace, tmp_path_factory, free_port):
    """JupyterLab on 127.0.0.1 with a token, untouched by the user's own settings; yields (address, token)."""
    folder, token = tmp_path_factory.mktemp("jupyter"), secrets.token_hex(16)
    settings = {
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # cells out of sight are in the page too
        "apputils-extension/notification": '{"fetchNews": "false"}',
    }  # no question in front of a lesson
    for name, text in settings.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    places = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(folder / place) for name, place in places.items()} | {"TQDM_DISABLE": "1"}
    for name in ("MPLBACKEND", ONLY_DEFAULT):
        environment.pop(name, None)
    port, log = free_port(), folder / "jupyter.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={token}",
                f"--ServerApp.root_dir={workspace}",
                "--LabApp.news_url=None",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=workspace,
            env=environment,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status?token={token}", process, log)
        yield address, token
    finally:
        process.terminate()  # ends the kernels, too
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask(url: str, token: str, method: str = "GET", content=None):
    """The server's own answer, whatever proxy is set."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Authorization": f"token {token}"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return answer.read()


def _wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"JupyterLab ended:\n{log.read_text()[-3000:]}"
        try:
            _ask(url, "")
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer in {seconds} s:\n{log.read_text()[-3000:]}")


@pytest.fixture
def page(server):
    """A new page; what was started from it ends with it."""
    with new_page(viewport={"width": 1300, "height": 1000}) as page:
        yield page
    address, token = server
    for kernel in json.loads(_ask(f"{address}/api/kernels", token)):  # one lesson's memory at a time
        _ask(f"{address}/api/kernels/{kernel['id']}", token, "DELETE")


def run_all_cells(page, address: str, token: str, notebook, name: str, seconds: float = 600) -> None:
    """Open a notebook, choose Run All Cells from the menu, and wait until all are run: folded ones show no number."""
    folded = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in notebook.cells]
    cells = sum(
        cell.cell_type == "code" and bool(cell.source.strip()) and not hidden
        for cell, hidden in zip(notebook.cells, folded, strict=True)
    )
    # Its kernel first: JupyterLab takes a running one, without a dialog, and replaces none while cells run
    kernel = {"name": notebook.metadata.kernelspec.name}
    session = {"path": name, "name": name, "type": "notebook", "kernel": kernel}
    _ask(f"{address}/api/sessions", token, "POST", session)
    page.goto(f"{address}/lab/tree/{name}?token={token}&reset")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    is_idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    accept = page.locator(".jp-Dialog .jp-mod-accept")
    page.add_locator_handler(accept, lambda: click_if_there(accept))

    def is_done() -> bool:
        """An error stops the run: then the test says which. Cells passed over are chosen again: on a busy machine the
        page may not yet hear the kernel that it shows as idle."""
        for _ in range(10):  # between two cells a kernel is idle, too, for a moment
            if not is_idle.count():
                return False
            if page.locator(ERRORS).count() > 0:
                return True
            page.wait_for_timeout(300)
        if sum(map(is_numbered, prompts.all_inner_texts())) >= cells:
            return True
        page.keyboard.press("Escape")  # a menu left open
        click_if_there(page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")))
        click_if_there(page.get_by_role("menuitem", name="Run All Cells", exact=True))
        return False

    until(page, is_done, seconds, lambda: f"cells did not finish: {prompts.all_inner_texts()}")


def click_if_there(button) -> None:
    """A dialog or a menu may close by itself, when a part of JupyterLab that comes late takes the focus."""
    from playwright.sync_api import TimeoutError

    with contextlib.suppress(TimeoutError):
        button.click(timeout=15_000)


def is_numbered(prompt: str) -> bool:
    return re.fullmatch(r"\[\d+\]:", prompt.strip()) is not None


def kind_of(view) -> str:
    """ "frames": pictures and their controls; or what its buttons say."""
    return next((kind for name, kind in OTHER_KINDS.items() if view.get_by_role("button", name=name).count()), "frames")


@pytest.mark.parametrize("name", [path.name for path in course.lessons()])
def test_every_control_of_a_lesson_changes_what_is_seen(name, workspace, server, page, tmp_path):
    notebook = course.read(workspace / name)
    run_all_cells(page, *server, notebook, name)
    assert page.locator(ERRORS).all_inner_texts() == []

    def kinds() -> list[str]:
        return [kind_of(view) for view in page.locator(VIEWS).all()]

    # The browser may still be building the last ones
    until(page, lambda: kinds().count("frames") == explorers(notebook), 60, kinds)
    views = page.locator(VIEWS).all()
    for view, kind in zip(views, kinds(), strict=True):
        view.scroll_into_view_if_needed()
        if kind == "frames":
            assert move_all(page, view, SLIDERS, GROUPS) > 0, (
                f"no control of {view.inner_text()!r} has more than one value in the smoke profile"
            )
        else:
            press = {"upload": press_upload, "live": press_live, "instant": press_instant}[kind]
            press(page, view, workspace, tmp_path)
    assert page.locator(ERRORS).all_inner_texts() == []  # nor did a button cause one


def press_upload(page, view, workspace: Path, folder: Path) -> None:
    """A photograph is dropped in, kept beside the lessons (of this copy), and given up again."""
    Image.new("RGB", (60, 40), "green").save(folder / "holiday.png")
    others = course.HERE / FILE
    was_there, cat = others.exists(), steady(page, view)
    with page.expect_file_chooser() as chooser:
        view.get_by_role("button", name="Choose a photograph").click()
    assert changes(page, view, lambda: chooser.value.set_files(folder / "holiday.png"))
    until(page, lambda: "holiday.png is kept" in view.inner_text(), 90, view.inner_text)
    assert (workspace / FILE).is_file() and others.exists() == was_there
    assert changes(page, view, view.get_by_role("button", name="Back to the cat").click, to=cat)
    assert not (workspace / FILE).exists()


def nudges(page, view) -> list:
    """For each control of a view, a way to move it well to the side."""

    def slide(slider) -> None:
        slider.focus()
        middle = sum(float(slider.get_attribute(f"aria-value{end}")) for end in ("min", "max")) / 2
        for _ in range(10):
            page.keyboard.press("ArrowRight" if float(slider.get_attribute("aria-valuenow")) < middle else "ArrowLeft")

    def choose(group) -> None:
        next(button for button in group.get_by_role("button").all() if not is_pressed(button)).click()

    return [
        *(lambda slider=slider: slide(slider) for slider in view.locator(SLIDERS).all()),
        *(lambda group=group: choose(group) for group in view.locator(GROUPS).all()),
    ]


def press_live(page, view, workspace: Path, folder: Path) -> None:
    """What takes a while is computed at the press of a button, for the controls as they are."""
    before = steady(page, view)
    for nudge in nudges(page, view):
        nudge()
    compute = view.get_by_role("button", name="Compute")
    compute.click()
    # It can be pressed again at the end; "Done" may give way to a late move's words at once
    until(page, lambda: seen(view) not in ([], before) and compute.is_enabled(), 180, view.inner_text)
    assert "could not be computed" not in view.inner_text()
    check_pictures(view)


# In one breath: the browser holds the second move back until the kernel has answered the first, but not the press
MOVES_AND_RESET = """view => {
    const slider = view.querySelector(".noUi-handle[role=slider]")
    for (const key of ["ArrowRight", "ArrowRight"])
        slider.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}))
    const buttons = [...view.querySelectorAll("button")]
    buttons.find(button => button.innerText.includes("First settings")).click()
}"""


def press_instant(page, view, workspace: Path, folder: Path) -> None:
    """The kernel follows each control, and one button goes back, however fast it is pressed after a move."""
    first = steady(page, view)
    for nudge in nudges(page, view):
        steady(page, view)  # or a late picture of the control before would be taken for this one's
        assert changes(page, view, nudge), view.inner_text()
    check_pictures(view)
    view.evaluate(MOVES_AND_RESET)
    until(page, lambda: steady(page, view) == first, 60, view.inner_text)

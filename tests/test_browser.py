"""One lesson in a real browser: JupyterLab runs it, and a slider moved by keyboard changes the picture."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import course
import nbformat
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")]
LESSON = "05_evaluation.ipynb"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run",
         "--disable-component-update", "--disable-quic", "--disable-dev-shm-usage"]  # fmt: skip

# Errors and warnings in the outputs
ERRORS = ", ".join(f'.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("error", "stderr"))


@pytest.fixture
def workspace(tmp_path):
    """A copy of the notebooks, all in the smoke profile."""
    folder = tmp_path / "notebooks"
    shutil.copytree(course.HERE, folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for path in folder.glob("0*.ipynb"):
        notebook = course.read(path)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None  # what is seen was made now
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub(r'^PROFILE = "cpu"', 'PROFILE = "smoke"', cell.source, flags=re.M)
        nbformat.write(notebook, path)
    return folder


@pytest.fixture
def server(workspace, tmp_path, monkeypatch):
    """JupyterLab on 127.0.0.1 with a token, untouched by the user's own settings; yields (address, token)."""
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # cells out of sight are in the page too
    for name, place in {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
                        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}.items():  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    token = secrets.token_hex(16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "jupyter.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
             f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
             f"--ServerApp.root_dir={workspace}", "--LabApp.news_url=None",
             "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
            stdout=file, stderr=subprocess.STDOUT, cwd=workspace, env=os.environ.copy())  # fmt: skip
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


def _wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"JupyterLab ended:\n{log.read_text()[-3000:]}"
        try:
            with direct.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer in {seconds} s:\n{log.read_text()[-3000:]}")


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser.new_page(viewport={"width": 1300, "height": 1000})
        browser.close()


def run_all_cells(page, address: str, token: str, name: str, cells: int, seconds: float = 300) -> None:
    """Open a notebook, choose Run All Cells from the menu, and wait until every code cell has its number."""
    page.goto(f"{address}/lab/tree/{name}?token={token}&reset")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=90_000)
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")

    def has_begun() -> bool:
        """Choose the menu's entry; while the kernel is still connecting, that does nothing: choose it again."""
        if all(text.strip() == "[ ]:" for text in prompts.all_inner_texts()):
            page.keyboard.press("Escape")  # a menu left open
            page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            page.wait_for_timeout(3000)
        return any(text.strip() != "[ ]:" for text in prompts.all_inner_texts())

    until(page, has_begun, 120, lambda: "no cell began to run")

    def is_done() -> bool:  # an error stops the run: then the test says which
        return page.locator(ERRORS).count() > 0 or sum(map(is_numbered, prompts.all_inner_texts())) >= cells

    until(page, is_done, seconds, lambda: f"cells did not finish: {prompts.all_inner_texts()}")


def is_numbered(prompt: str) -> bool:
    return re.fullmatch(r"\[\d+\]:", prompt.strip()) is not None


def until(page, condition, seconds: float, complaint) -> None:
    """Ask from here, not by a timer in the page, which a busy machine can starve."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"after {seconds} s: {complaint()}")
        page.wait_for_timeout(300)


@pytest.fixture(params=[LESSON])
def notebook(request, workspace):
    """The notebook's name and its number of code cells."""
    return request.param, sum(c.cell_type == "code" and bool(c.source.strip()) for c in course.read(workspace / request.param).cells)


def test_slider_moved_by_keyboard_changes_the_picture(notebook, server, page):
    name, cells = notebook
    run_all_cells(page, *server, name, cells)
    assert page.locator(ERRORS).all_inner_texts() == []

    view = page.locator(".jp-OutputArea-output", has=page.locator(".noUi-handle")).first
    view.scroll_into_view_if_needed()
    picture = view.locator("img:visible").first
    before, alt_before = picture.get_attribute("src"), picture.get_attribute("alt")
    handle = view.locator(".noUi-handle").first
    handle.focus()
    assert handle.get_attribute("role") == "slider"
    page.keyboard.press("ArrowRight" if _is_at_start(handle) else "ArrowLeft")
    until(page, lambda: picture.get_attribute("src") != before, 30, lambda: "the picture is the same as before")
    after = view.locator("img:visible").first
    assert after.get_attribute("src") != before
    assert alt_before and after.get_attribute("alt")
    box = after.bounding_box()
    assert box["width"] > 20 and box["height"] > 20


def _is_at_start(handle) -> bool:
    return float(handle.get_attribute("aria-valuenow")) == float(handle.get_attribute("aria-valuemin"))

"""The site: Sphinx reads the repository as it is; the lessons are taken as `make course` ran them."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent), str(DOCS.parent / "notebooks")]

import docstrings  # noqa: E402  these two: where the rules of this project meet those of Sphinx
import lessons  # noqa: E402
from course import REPOSITORY  # noqa: E402  of the buttons that open a lesson; empty: no buttons

from tinymsg import __version__ as release  # noqa: E402, F401

project = html_title = "tinymsg"
author = "The tinymsg authors"
copyright = "The tinymsg authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/*.md", "notebooks/0*.ipynb", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "runs"]  # not even looked into
nitpicky = True  # a reference that leads nowhere is an error; see docstrings.resolve for names of other packages

# Lessons
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_code_prompt_hide = "Hide this code"
nb_ipywidgets_js = {"widgets.js": {"defer": "defer"}}  # ours needs no other host
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "lessons.slug"
html_math_renderer = "mathml"

# API pages
highlight_language = "none"  # of formulas in docstrings
default_role = "code"  # docstrings are plain text with `names`
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
maximum_signature_line_length = 100
autodoc_inherit_docstrings = False  # of torch's modules
viewcode_follow_imported_members = False

# Look
html_theme = "sphinx_book_theme"
html_theme_options = {
    "show_navbar_depth": 1,
    "use_download_button": True,
    "home_page_in_toc": True,
    "navbar_persistent": [],
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }
html_static_path = ["site.css", "../notebooks/widgets.css", "../notebooks/widgets.js"]
html_css_files = ["site.css", "widgets.css"]
html_sourcelink_suffix = ""
html_show_sphinx = html_use_index = html_domain_indices = False


def setup(app):
    app.add_config_value("executed", "runs/course", "env", description="folder of the executed lessons")
    lessons.setup(app)
    docstrings.setup(app)

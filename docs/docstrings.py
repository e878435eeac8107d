"""Reads docstrings and types as this library writes them: plain text, and types by the names that the source gives.

Neither is Google's style nor reStructuredText, so napoleon would read half of them wrongly.
"""

import ast
import builtins
import inspect
import pydoc
import re
import sys
import textwrap
from pathlib import Path, PurePath

import sphinx.pycode.parser
from sphinx.application import Sphinx

# The comment at a field or a constant is its documentation, here without Sphinx's colon
sphinx.pycode.parser.comment_re = re.compile(r"^\s*#:? (?!---)(.*)\r?\n?$")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Below a title that is a module's name and stands alone: that module, and of a room one after the other."""
    if found := re.fullmatch(r"# (tinymsg\.\w+)\s*", source[0]):
        room = Path(app.srcdir, *found[1].split("."))
        for name in ["", *sorted(f".{path.stem}" for path in room.glob("[!_]*.py"))]:
            title = f"\n## {found[1]}{name}\n" if name else ""
            source[0] += f"{title}\n```{{eval-rst}}\n.. automodule:: {found[1]}{name}\n```\n"


def signature(app: Sphinx, what: str, name: str, obj, options, given, returned):
    """Of a function as it stands in its source: `y0: Image`, not what jaxtyping makes of it."""
    if not (getattr(obj, "__module__", None) or "").startswith("tinymsg"):
        return None
    if what == "class":
        if "__init__" not in vars(obj) or hasattr(obj, "__dataclass_fields__") or issubclass(obj, tuple):
            return "", None  # its fields are listed below
        obj = obj.__init__
    elif what not in ("function", "method"):
        return None
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    if node.args.args and node.args.args[0].arg in ("self", "cls") and what != "function":
        del node.args.args[0]
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns and what != "class" else None


def docstring(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Plain text as reStructuredText: Args, Returns and Raises as fields, formulas and examples as they stand."""
    if not lines:
        return
    if what == "data" and getattr(obj, "__module__", "") == "jaxtyping":  # an array's type: what its shape is
        lines[0] = f"`{obj.__name__}`: {lines[0]}"
    if lines[0].startswith("Alias for field number"):  # all that a NamedTuple has to say
        lines[0] = ""
    made, within = [], ""
    for line in re.sub(r"(?<=[.:]) Raises: ", "\nRaises: ", "\n".join(lines)).split("\n"):
        indented, text = line.startswith("    "), line.strip()
        if line in ("Args:", "Attributes:"):
            made, within = [*made, ""], "arguments"
            continue
        if not text:
            within = within if within == "formula" else ""
        elif field := re.match(r"(Returns|Raises): (.*)", line):
            made, within = made if within else [*made, ""], "field"
            text = field[2] if field[1] == "Returns" else re.sub(r"^(\w+)\W*", r":raises \1: ", field[2])
            line = f":returns: {text}" if field[1] == "Returns" else text
        elif within == "arguments" and (argument := re.match(r" {4}(\*{0,2}\w+(?:, \w+)*): (.*)", line)):
            line = f":param {argument[1].replace(' ', '')}: {argument[2]}"
        elif within in ("arguments", "field"):
            line = f"    {text}"
        elif indented and not (made and made[-1]):
            made, within = made if within == "formula" else [*made, "::", ""], "formula"
        elif not indented:
            within = ">>>" if text.startswith(">>>") or within == ">>>" else ""
        if within not in ("formula", ">>>"):  # no marks but `names`
            line = re.sub(r"(`[^`]*`|^:.*?:)|([*|\\]|_(?!\w))", lambda m: m[1] or "\\" + m[2], line)
        made.append(line)
    lines[:] = [*made, ""]


def resolve(app: Sphinx, env, node, contnode):
    """Where a type leads: its name is looked up in the module that uses it, as Python does.

    To our own page of it, or, of another package, nowhere: nothing is fetched. A name that does not exist is told.
    """
    if node["refdomain"] != "py":
        return None
    target = node["reftarget"]
    try:
        found = eval(target, dict(vars(sys.modules.get(node.get("py:module"), builtins))))
    except (NameError, AttributeError, SyntaxError):  # the full name of what the module knows by a short one
        found = pydoc.locate(target)
    if found is None:
        return None
    domain, last = env.domains.python_domain, target.rpartition(".")[2]
    for full in [full for full in domain.objects if full.rpartition(".")[2] == last]:
        if pydoc.locate(full) is found:
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], full, node, contnode)
    return contnode


def skip_paths(app: Sphinx, what: str, name: str, obj, skip: bool, options) -> bool | None:
    """Where a file lies on the machine that builds the pages is nobody's business."""
    return True if isinstance(obj, PurePath) else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-skip-member", skip_paths)
    app.connect("missing-reference", resolve)

"""Reads finished pages: what can be searched in them, and what is broken: site_reader.py FOLDER."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from course import STATE

BLOCKS = {
    "p",
    "div",
    "li",
    "pre",
    "td",
    "th",
    "tr",
    "summary",
    "br",
    "img",
    "math",
}  # words end where these begin or end


class Reader(HTMLParser):
    """Collects of one page: anchors, links, pictures, what it loads, and its text, section by section."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[tuple[str, str]] = []  # source, alternative text
        self.loads: list[tuple[str, str]] = []  # tag, address
        self.sections: list[dict[str, str]] = [{"anchor": "", "heading": "", "text": ""}]
        self._skipped, self._heading, self._state = "", "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = {name: value or "" for name, value in attributes}
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links += [given["href"]] if "href" in given else []
        elif tag == "img":
            self.pictures.append((given.get("src", ""), given.get("alt", "").strip()))
            self._text(f" {given.get('alt', '')} ")
        elif tag in ("script", "style") or (tag == "math" and given.get("display") == "block"):  # no prose
            self._skipped, self._state = tag, given.get("type") == STATE
        elif re.fullmatch("h[1-6]", tag) and "id" in given:
            self._heading = tag
            self.sections.append({"anchor": given["id"], "heading": "", "text": ""})
        self.loads += [(tag, given[key]) for key in ("src", "data", "poster") if key in given]
        self.loads += [(tag, given["href"])] if tag == "link" and "href" in given else []
        self._text(" " if tag in BLOCKS else "")

    def handle_endtag(self, tag: str) -> None:
        self._skipped = "" if tag == self._skipped else self._skipped
        self._heading = "" if tag == self._heading else self._heading
        self._text(" " if tag in BLOCKS else "")

    def handle_data(self, data: str) -> None:
        if self._skipped and self._state:  # a widget's pictures are in its saved state
            values = [model["state"].get("value") for model in json.loads(data).get("state", {}).values()]
            self.pictures += [
                p for value in values if isinstance(value, str) and "<img" in value for p in Reader(value).pictures
            ]
        elif not self._skipped:
            self._text(data)

    def _text(self, data: str) -> None:
        self.sections[-1]["heading" if self._heading else "text"] += data


def search_entries(name: str, title: str, body: str) -> list[dict[str, str]]:
    """What the search knows of one page: {page, title, anchor, heading, text} of each section."""
    entries = [
        {"page": name, "title": title} | {key: " ".join(text.split()) for key, text in section.items()}
        for section in Reader(body).sections
    ]
    return [
        entry | {"heading": entry["heading"].removesuffix(" #")}
        for entry in entries
        if entry["heading"] + entry["text"]
    ]


def site_problems(folder: Path) -> list[str]:
    """A sentence for each broken link or anchor, missing picture, picture without text, and address of another host."""
    pages = {path.resolve(): Reader(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve()).as_posix()
        found += [f"{name}: two places have the anchor #{i}" for i in dict.fromkeys(page.ids) if page.ids.count(i) > 1]
        found += [f"{name}: {problem}" for link in page.links if (problem := _link_problem(link, path, pages))]
        for source, alt in page.pictures:
            shown = source if len(source) < 60 else f"{source[:40]}..."
            if not alt:
                found.append(f"{name}: the picture {shown} has no alternative text")
            if not source or not (_has_scheme(source) or _target(source, path).is_file()):
                found.append(f"{name}: the picture {shown!r} is missing")
        for tag, address in page.loads:
            if _has_scheme(address) and not address.startswith("data:"):
                found.append(f"{name}: <{tag}> loads {address} from another host")
            elif tag != "img" and not _has_scheme(address) and not _target(address, path).is_file():
                found.append(f"{name}: <{tag}> loads {address}, which is missing")
    for path in sorted(folder.rglob("*.css")):
        outside = re.findall(r"@import[^;]*|url\(\s*['\"]?(?!data:)[^)]*", path.read_text())
        found += [f"{path.relative_to(folder).as_posix()}: loads {address}" for address in outside]
    return found


def _has_scheme(address: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*:|//", address, re.I))


def _target(address: str, page: Path) -> Path:
    path = unquote(address.partition("#")[0].partition("?")[0])
    return (page.parent / path).resolve() if path else page


def _link_problem(link: str, page: Path, pages: dict[Path, Reader]) -> str | None:
    if _has_scheme(link):
        return None
    target, anchor = _target(link, page), unquote(link.partition("#")[2])
    if not target.is_file():
        return f"the link {link} leads nowhere"
    if anchor and target in pages and anchor not in pages[target].ids:
        return f"the link {link} leads to an anchor that is not there"
    return None


if __name__ == "__main__":
    for sentence in (problems := site_problems(Path(sys.argv[1]))):
        print(sentence)
    sys.exit(1 if problems else 0)

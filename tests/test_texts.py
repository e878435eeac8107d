"""The texts beside the lessons say nothing that the lessons, the library or their own sums contradict."""

import importlib
import re

import course
import pytest

TEXTS = sorted(course.HERE.glob("*.md"))
GLOSSARY, MATHEMATICS, TEACHING = (
    (course.HERE / f"{name}.md").read_text() for name in ("GLOSSARY", "MATHEMATICS", "TEACHING")
)
LESSONS = {path.name: course.read(path) for path in course.lessons()}
LIBRARY = course.HERE.parent / "tinymsg"
ROOMS = [room for room in LIBRARY.iterdir() if room.is_dir() and room.name != "cli"]  # its files are named like others
MODULES = {  # schedule -> tinymsg.schedule, toy -> tinymsg.studies.toy
    path.stem: ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
    for folder in (*ROOMS, LIBRARY)
    for path in folder.glob("[a-z]*.py")
}


def prose(notebook) -> str:
    """All that a reader sees of a lesson, in one line: text, code, printed results."""
    seen = [cell.source for cell in notebook.cells]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        seen += [output.get("text", "")] + [
            output.get("data", {}).get(f"text/{kind}", "") for kind in ("plain", "markdown")
        ]
    return " ".join(" ".join(seen).split())


def stated_minutes(name: str) -> int:
    """Of reading and doing, from a lesson's first cell; the longer time where it gives two."""
    return int(re.search(r"(?:\d+ to )?(\d+) minutes", LESSONS[name].cells[0].source)[1])


def exercise_minutes(name: str) -> list[int]:
    headings = [
        line for cell in LESSONS[name].cells for line in cell.source.splitlines() if re.match(r"#+ Exercise", line)
    ]
    return [int(re.search(r"\(★+, (\d+) minutes\)", line)[1]) for line in headings]


def table(heading: str) -> list[list[str]]:
    """Rows below the head of the first table in a section of TEACHING.md."""
    section = TEACHING.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip().strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def resolve(name: str):
    """What module.Class.attribute or room.module.function names, or raise."""
    first, *rest = name.split(".")
    found = importlib.import_module(MODULES.get(first, f"tinymsg.{first}"))
    for part in rest:
        fields = getattr(found, "__dataclass_fields__", {})
        if hasattr(found, "__path__") and not hasattr(found, part):
            found = importlib.import_module(f"{found.__name__}.{part}")
        else:
            found = fields[part] if part in fields else getattr(found, part)
    return found


# --- all of them --------------------------------------------------------------------------------------------


def test_the_first_lesson_leads_to_all_of_them():
    assert {f"{path.name}" for path in TEXTS} <= set(re.findall(r"\]\((\w+\.md)\)", prose(LESSONS["00_start.ipynb"])))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_no_measured_number_is_typed_by_hand(path):
    assert course.bare_numbers(path.read_text()) == []


def test_github_shows_every_formula():
    """It refuses some macros: github/markup#1688."""
    written = [path.read_text() for path in [*TEXTS, *(LIBRARY.parent / "docs").glob("*.md")]]
    written += [cell.source for lesson in LESSONS.values() for cell in lesson.cells if cell.cell_type == "markdown"]
    assert [
        found for text in written for found in re.findall(r"\\(?:operatorname|mbox|phantom|newcommand)\b", text)
    ] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_every_function_that_is_named_exists(path):
    names = re.findall(r"`tinymsg\.([\w.]+)", path.read_text())
    names += [name for name in re.findall(r"`(\w+\.\w+)[`(]", path.read_text()) if name.split(".")[0] in MODULES]
    assert names
    for name in names:
        resolve(name)


def test_a_name_that_does_not_exist_is_found():
    for name in ("schedule.q_simple", "model.Model.encoder", "nothing"):
        with pytest.raises((AttributeError, ImportError)):
            resolve(name)


# --- the glossary -------------------------------------------------------------------------------------------

ENTRIES = {
    re.match(r"\*\*(.+?)\.?\*\*", entry)[1]: " ".join(entry.split())
    for entry in re.split(r"^- ", GLOSSARY, flags=re.M)[1:]
}


def test_the_glossary_has_its_terms_in_order():
    order = [re.sub(r"[^a-z0-9]+", " ", term.lower()) for term in ENTRIES]
    assert 40 <= len(order) <= 80
    assert order == sorted(order) and len(set(order)) == len(order)


@pytest.mark.parametrize("term", ENTRIES)
def test_an_entry_names_a_lesson_that_has_the_term(term):
    number, name = re.fullmatch(r".* \[(\d\d)\]\((\d\d_\w+\.ipynb)\)", ENTRIES[term]).groups()
    assert name.startswith(number)
    assert re.search(rf"(?<![a-z]){re.escape(term.lower())}", prose(LESSONS[name]).lower())


def members(found: type) -> set[str]:
    """Of a class, those that its constructor sets included."""
    return {*dir(found), *getattr(found, "__annotations__", ()), *found.__init__.__code__.co_names}


def test_classes_that_the_glossary_names_have_what_it_says():
    method = [importlib.import_module(f"tinymsg.{name}") for name in ("schedule", "model", "train", "sample")]
    classes = {name: found for module in method for name, found in vars(module).items() if isinstance(found, type)}
    named = [name.split(".") for name in re.findall(r"`([A-Z]\w+\.\w+)`", GLOSSARY)]
    assert len(named) >= 5
    assert [f"{owner}.{name}" for owner, name in named if name not in members(classes[owner])] == []


# --- formulas -----------------------------------------------------------------------------------------------


def test_every_formula_has_the_function_that_computes_it():
    """After each heading in bold: a formula or a table, and a function, before the next one."""
    parts = re.split(r"^\*\*(.+?)\*\*", MATHEMATICS, flags=re.M)
    titles, bodies = parts[1::2], parts[2::2]
    assert len(titles) >= 15
    for title, body in zip(titles, bodies, strict=True):
        assert "`tinymsg." in body.split("\n## ")[0], title
    assert MATHEMATICS.count("$$") % 2 == 0


# --- the teacher's notes ------------------------------------------------------------------------------------


def test_the_minutes_are_those_that_the_lessons_state():
    *rows, last = table("The lessons and their minutes")
    sums = [0, 0]
    assert [re.search(r"\((\w+\.ipynb)\)", row[0])[1] for row in rows] == list(LESSONS)
    for text, minutes, exercises in rows:
        name = re.search(r"\((\w+\.ipynb)\)", text)[1]
        assert int(minutes) == stated_minutes(name)
        assert int(exercises) == sum(exercise_minutes(name))
        sums = [sums[0] + int(minutes), sums[1] + int(exercises)]
    assert [int(cell) for cell in last[1:]] == sums


def test_the_course_takes_the_time_that_it_states():
    """As course.py counts it: from words, code that is not hidden, figures and the exercises' own minutes."""
    efforts = {name: course.effort(notebook) for name, notebook in LESSONS.items()}
    for name, effort in efforts.items():
        assert abs(effort.minutes - stated_minutes(name)) <= 5, (name, effort)
    assert sum(effort.words for effort in efforts.values()) <= 20_000
    assert sum(effort.minutes for effort in efforts.values()) <= 6.5 * 60
    assert len(LESSONS["04_ablations.ipynb"].cells) <= 75


def test_the_day_adds_up():
    *rows, (end, total, _) = table("One day")
    clock = 9 * 60
    for start, minutes, _ in rows:
        assert start == f"{clock // 60:02d}:{clock % 60:02d}"
        clock += int(minutes)
    assert end == f"{clock // 60:02d}:{clock % 60:02d}" and int(total) == clock - 9 * 60


def lesson_time(rows: list[tuple[int, str]]) -> dict[str, int]:
    """Minutes of each lesson in a timetable."""
    spent = dict.fromkeys(LESSONS, 0)
    for minutes, what in rows:
        for name in LESSONS:
            spent[name] += minutes * what.startswith(f"lesson {name[:2]}")
    return spent


def test_both_timetables_give_every_lesson_its_time():
    wanted = {name: stated_minutes(name) for name in LESSONS}
    assert lesson_time([(int(minutes), what) for _, minutes, what in table("One day")]) == wanted
    assert (
        lesson_time(
            [(int(minutes), what) for _, _, minutes, what in (row for row in table("Four weeks") if len(row) == 4)]
        )
        == wanted
    )


def test_the_four_weeks_add_up():
    rows = table("Four weeks")
    sums = {(week, where): 0 for week, where, *_ in rows}
    for week, where, minutes, *_ in rows:
        sums[week, where] += int(minutes)
    assert [sums[str(week), "class"] for week in (1, 2, 3, 4)] == [90] * 4
    for where in ("class", "home"):
        assert sums["all", where] == sum(sums[str(week), where] for week in (1, 2, 3, 4))


def test_the_points_add_up():
    *rows, last = table("How to grade")
    assert sum(int(points) for _, points in rows) == int(last[1]) == 100


@pytest.mark.parametrize("name", ["00_start.ipynb", "01_blur.ipynb", "02_icdpm.ipynb"])
def test_the_answers_to_expect_are_those_that_came_out(name):
    revealed = set(re.findall(r"What happened: (.+?)\. ", prose(LESSONS[name])))
    assert revealed
    assert [answer for answer in revealed if answer not in TEACHING] == []


def test_every_exercise_has_its_answer():
    for name in LESSONS:
        section = TEACHING.split(f"\n### Lesson {name[:2]}\n")[1].split("\n##")[0]
        assert len(exercise_minutes(name)) == len(re.findall(r"^- \*\*Exercise \d\*\*", section, flags=re.M)), name


# --- lesson 00 ----------------------------------------------------------------------------------------------


def test_lesson_00_lists_the_lessons_with_their_minutes():
    shown = prose(LESSONS["00_start.ipynb"])
    for name, notebook in LESSONS.items():
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        minutes = re.search(r"(\d+(?: to \d+)?) minutes", notebook.cells[0].source)[1]
        assert f"| [{title}]({name}) | {minutes} |" in shown, "build lesson 00 again: another one changed its minutes"
    together = sum(map(stated_minutes, LESSONS)) / 60
    assert f"Together {together:.1f} hours" in shown

"""README and docs: links lead somewhere, commands, options and messages exist, and the map shows every module."""

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

README = ROOT / "README.md"
MAP = ROOT / "docs" / "map.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

# A link or an image in Markdown: [text](target) or ![text](target).
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def page_id(page):
    return page.name


def heading_anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page):
    """Return the `python` commands of a page: in indented and fenced blocks, and between backticks elsewhere."""
    found, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            found += re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line))
        else:
            found += [part for code in re.findall(r"`([^`]+)`", line) for part in re.split(r"&&|;", code)]
    return [command for command in map(str.strip, found) if re.match(r"(\$ )?python\s", command)]


@functools.cache
def help_text(*target):
    """Return what `python TARGET --help` prints."""
    done = subprocess.run([sys.executable, *target, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_faults(command):
    """Return what is wrong with a command: a script, a module or an option that does not exist."""
    words = shlex.split(command.removeprefix("$ "))[1:]
    if words[:1] == ["-m"]:
        target, options = words[:2], words[2:]
        path = ROOT.joinpath(*words[1].split("."))
        if words[1] in ("pytest", "venv", "http.server"):
            return []
        exists = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    else:
        target, options = words[:1], words[1:]
        exists = words[0].endswith(".py") and (ROOT / words[0]).is_file()
    if not exists:
        return [f"{command}: {target[-1]} does not exist"]
    names = [word.partition("=")[0] for word in options if word.startswith("--")]
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", help_text(*target))) if names else set()
    return [f"{command}: {target[-1]} has no option {name}" for name in names if name not in known]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_images_exist(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in heading_anchors(path), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_name_existing_scripts_and_options(page):
    assert [fault for command in commands(page) for fault in command_faults(command)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_options_in_the_text_exist(page):
    known = help_text("signs_resnet50.py")  # it has all options of the other two scripts
    names = re.findall(r"`(--[a-z][a-z0-9-]*)[^`]*`", page.read_text(encoding="utf-8"))
    assert [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", known)] == []


def test_readme_shows_commands_that_this_test_sees():
    found = commands(README)
    for expected in (
        "python happy_sequential.py",
        'python -m pytest -m "not slow"',
        "python -m datasets.download",
        "python signs_functional.py --predict hand.jpg",
        "python happy_sequential.py --export web",
        "python happy_sequential.py --data synthetic --seeds 5",
    ):
        assert expected in found


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("python unknown.py", "unknown.py does not exist"),
        ("python -m datasets.unknown", "datasets.unknown does not exist"),
        ("python signs_functional.py --epoch 3", "signs_functional.py has no option --epoch"),
        ("python signs_functional.py --epochs 3", ""),
        ("python -m datasets.download signs", ""),
    ],
)
def test_a_wrong_command_is_found(command, fault):
    assert command_faults(command) == ([f"{command}: {fault}"] if fault else [])


def first_column(text):
    """Return the names between backticks in the first column of the tables in a text."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def modules(root):
    """Return the paths of the project's Python modules, without the tests and the `__init__.py` of the packages."""
    folders = ("basics", "benchmarks", "datasets", "notebooks", "support", "weights")
    paths = [*root.glob("*.py"), *(path for folder in folders for path in (root / folder).rglob("*.py"))]
    return {path.relative_to(root).as_posix() for path in paths if path.name != "__init__.py"}


def test_the_map_shows_every_module_and_nothing_else():
    names = first_column(MAP.read_text(encoding="utf-8"))
    assert [name for name in names if not (ROOT / name).is_file()] == []
    assert sorted(modules(ROOT) - set(names)) == []
    assert len(names) == len(set(names))


def test_the_map_of_readme_shows_every_folder():
    _, _, section = README.read_text(encoding="utf-8").partition("\n## The map\n")
    names = first_column(section)
    assert [name for name in names if not (ROOT / name).exists()] == []
    folders = {name.split("/")[0] for name in modules(ROOT) if "/" in name} | {"tests", "docs"}
    assert folders == {name.split("/")[0] for name in names if "/" in name}


def test_messages_in_troubleshooting_are_those_of_the_code():
    _, _, section = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("\n## Messages\n")
    messages = [name for name in first_column(section.partition("\n## ")[0]) if not name.startswith("--")]
    others = ["externally-managed-environment", "python: command not found", "No module named 'basics'"]  # of pip, ...
    code = "".join((ROOT / name).read_text(encoding="utf-8") for name in modules(ROOT))
    assert len(messages) > 10
    assert [message for message in messages if message not in code] == others


def test_every_docs_page_is_linked_from_readme():
    targets = {pathlib.PurePosixPath(target) for target in LINK.findall(README.read_text(encoding="utf-8"))}
    assert {pathlib.PurePosixPath("docs", page.name) for page in PAGES[1:]} <= targets

"""The README and docs/: commands are ones that `ablate` takes, declarations can be planned, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from ablations.__main__ import parse
from ablations.cli.studies import declared
from core.errors import UserError
from sweeps.search.plan import plan as plan_search
from sweeps.spec import Ablation, Search
from sweeps.studies.resolve import plan
from tests.reference import DOCS, pages

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose code is run elsewhere: test_extending.py, test_plugins.py, test_notebook.py.
RUN_ELSEWHERE = ("extending.md", "plugins.md", "notebooks.md")
OURS = [page for page in PAGES if page.name not in RUN_ELSEWHERE]
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.S)


def commands() -> list[tuple[str, str]]:
    """Every line of an indented or fenced block that calls `ablate`, and every `ablate ...` in the text with a name."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ablate ")]
        blocks += [line for kind, block in FENCE.findall(text) if kind in ("", "bash") for line in block.splitlines()]
        found += [(page.name, line) for line in blocks if line.startswith("ablate ")]
    return found


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one_that_ablate_takes(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    arguments = parse([word for word in words if word != "..."])
    of_study = ["plan", "run", "status", "report", "verify", "sync", "cancel", "retry", "decode", "confirm"]
    if arguments.command in of_study and not arguments.name.endswith(".py"):
        sizes = declared(arguments.name)[1].sizes
        assert arguments.size in ("full", None) or arguments.size in sizes, f"{page}: {line}"


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_every_declaration_can_be_planned(page: Path) -> None:
    for kind, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind != "python":
            continue
        names: dict[str, object] = {}
        exec(block, names)
        for value in list(names.values()):
            if isinstance(value, Ablation):
                assert plan("documented", value).runs
            elif isinstance(value, Search):
                assert plan_search("documented", value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


QUOTED = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"(?<![\w.])(?:core|sweeps|analysis|ablations)(?:\.\w+)+")


def defined(dotted: str) -> bool:
    """True if a dotted name is a module of ours, or a name (with attributes) at the top level of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        if base.is_dir() or base.with_suffix(".py").is_file():
            file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            name = parts[length] if length < len(parts) else ""
            return bool(re.search(rf"^(?:def |class |from .* import .*\b)?{name}\b", file.read_text("utf-8"), re.M))
    return False


@pytest.mark.parametrize("page", [*OURS, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for quoted in QUOTED.findall(page.read_text(encoding="utf-8")):
        for dotted in DOTTED.findall(quoted) if "/" not in quoted else []:
            assert defined(dotted), f"{page.name}: {dotted}"
        if re.fullmatch(r"(?:core|sweeps|analysis|ablations|tests|docs)/[\w/.]+", quoted):
            assert (ROOT / quoted).exists(), f"{page.name}: {quoted}"
        if re.fullmatch(r"test_\w+\.py", quoted):
            assert quoted in files, f"{page.name}: {quoted}"


@pytest.mark.parametrize("name", sorted(pages()))
def test_generated_pages_are_those_of_the_code(name: str) -> None:
    page = pages()[name]
    assert (DOCS / name).read_text(encoding="utf-8") == page, "run `python -m tests.reference`"
    assert not re.search(r"\| *\|$", page, re.M), "a key or a metric has no meaning: comment its field"


# Commands of which each kind is a program of its own.
KINDS = ("bench", "probe", "import")


def spoken() -> set[tuple[str, ...]]:
    """Of every documented command its name, and of those with kinds its kind."""
    return {
        tuple(words[1:3] if words[1] in KINDS else words[1:2]) for _, line in commands() for words in [line.split()]
    }


@pytest.mark.parametrize("words", sorted(spoken()), ids=" ".join)
def test_every_documented_command_is_run_by_a_test(words: tuple[str, ...]) -> None:
    """Each is called with arguments of its own somewhere in the tests; a page's own lines are run for the worked example."""
    said = r",\s*".join(re.escape(f'"{word}"') for word in words)
    called = re.compile(rf"(?:(?:ablate|process|said|parse)\(|main\(\[|= [\(\[])\s*{said}")
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(called.search(path.read_text(encoding="utf-8")) for path in files), " ".join(words)


def test_a_command_that_is_none_would_be_found() -> None:
    with pytest.raises(UserError):
        parse(["ruin", "balance"])

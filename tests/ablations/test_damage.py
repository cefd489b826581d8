"""Damage to a folder of runs: every command that reads it ends in an answer or in one line, and nothing finished is lost."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from ablations.cli import studies
from ablations.dashboard.poller import Poller
from core.errors import UserError
from tests.ablations.shell import ablate
from tests.ablations.test_run import DECLARATION

ESCAPE, FLIPPED = "\x1b[2J", "\u202e"

pytestmark = pytest.mark.slow

READING = (
    ("status", "toy.py"),
    ("report", "toy.py"),
    ("verify", "toy.py"),
    ("plan", "toy.py", "--no-calibration"),
    ("export", "toy.py", "--arm", "top_k=2", "--to", "exported"),
    ("export", "toy.py", "--arm", "top_k=1", "--format", "hf", "--to", "hf"),
    ("confirm", "toy.py"),
    ("sync", "toy.py"),
    ("decode", "toy.py"),
    ("list",),
    ("retry", "toy.py"),
    ("cancel", "toy.py"),
)
PROBE = ("probe", "lengths", "toy.py", "--sequences", "16", "--lengths", "8")
NESTED = "[" * 5_000_000 + "]" * 5_000_000
LONG = "9" * 400
PROGRESS = re.compile(r"\d\d:\d\d:\d\d ")  # how a sweep's lines begin


def _run(runs: Path) -> Path:
    return next(iter(sorted((runs / "toy" / "top_k=1").glob("seed-0-*"))))


def written(text: str | bytes) -> Callable[[Path], None]:
    """The file holds something else."""
    content = text.encode() if isinstance(text, str) else text
    return lambda path: (path.unlink(missing_ok=True), path.write_bytes(content), None)[-1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent / "nowhere")


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.chmod(0)


def changed(**changes: object) -> Callable[[Path], None]:
    """The file's JSON with other values."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | changes).replace('"LONG"', LONG))

    return change


ANY_FILE: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": written(""),
    "garbage": written("garbage"),
    "no text": written(b"\xff\xfe\x00{"),
    "no mapping": written("[1, 2]"),
    "null": written("null"),
    "nested": written(NESTED),
    "a number of 5000 digits": written('{"schema": ' + "9" * 5000 + "}"),
    "a folder": folder,
    "a dangling link": dangling,
    "a link to itself": endless,
    "unreadable": unreadable,
}
RECORD: dict[str, Callable[[Path], None]] = {
    "of another schema": changed(schema=99),
    "metrics no mapping": changed(metrics=[1]),
    "a metric that is text": changed(metrics={"val/nelbo": "low"}),
    "a metric of 400 digits": changed(metrics={"val/nelbo": "LONG", "load/max_vio": 1.0}),
    "infinite": changed(metrics={"val/nelbo": float("inf"), "load/max_vio": float("nan")}),
    "curve no mapping": changed(curve=3),
    "a curve of words": changed(curve={"step": ["a"], "tokens": ["b"], "train/nelbo": [None]}),
    "curves of other lengths": changed(curve={"step": [1], "tokens": [1, 2], "train/nelbo": [1, 2, 3]}),
    "validation without tokens": changed(validation={"val/nelbo": [1.0, 2.0]}),
    "load no mapping": changed(expert_load=[1]),
    "load of words": changed(expert_load={"step": [1], "load": [["x"]]}),
    "load of other shapes": changed(expert_load={"step": [1, 2], "load": [[[1.0]], [[0.5, 0.5], [1.0]]]}),
    "routing of words": changed(routing={"step": ["x"], "top1_probability": 3, "load_by_timestep": "no"}),
    "alarms of words": changed(alarms=["x"]),
    "provenance of words": changed(provenance="x"),
    "packages of words": changed(provenance={"packages": [1], "git_commit": 3}),
    "config no mapping": changed(config="x"),
    "another config": changed(config={"model": "x"}),
    "seed no number": changed(seed="zero"),
    "a seed of 400 digits": changed(seed="LONG"),
    "hash no text": changed(run_hash=[1]),
    "status unknown": changed(status="fine"),
    "times of 400 digits": changed(wall_time_s="LONG", flops="LONG", tokens_per_second="LONG"),
    "time no text": changed(finished_at=3),
    "parameters of words": changed(parameters={"total": "x"}),
    "study of words": changed(study="x"),
    "its design of words": changed(study={"arm": "top_k=1", "design": {"arms": 3}}),
    "best of words": changed(best=[1]),
    "reason no text": changed(reason=[1], status="failed"),
}
DESIGN: dict[str, Callable[[Path], None]] = {
    "no arms": changed(arms=[]),
    "arms of words": changed(arms=["x"]),
    "seeds of words": changed(seeds=["x"]),
    "no seeds": changed(seeds=3),
    "no metric": changed(metric=3),
    "an unknown metric": changed(metric="no/such"),
    "an unknown control": changed(control="nobody"),
    "alpha of words": changed(alpha="x"),
    "alpha of 400 digits": changed(alpha="LONG"),
    "fingerprint of words": changed(data_fingerprint=[1]),
    "factors of words": changed(factors=[1]),
    "contrasts of words": changed(contrasts=3),
    "adaptive of words": changed(adaptive=3),
    "question of words": changed(question=[1]),
    "empty mapping": written("{}"),
}
OTHERS = ("progress.json", "model.safetensors", "config.yaml", ".lock")


def _faults() -> Iterator[tuple[str, Callable[[Path], None]]]:
    for name, damage in (ANY_FILE | RECORD).items():
        yield f"record: {name}", lambda runs, damage=damage: damage(_run(runs) / "record.json")
    for name, damage in (ANY_FILE | DESIGN).items():
        yield f"design: {name}", lambda runs, damage=damage: damage(runs / "toy" / "design.json")
    for file in OTHERS:
        for name in ("garbage", "cut", "no mapping", "a folder", "a dangling link", "nested"):
            if name != "cut" or file != ".lock":
                yield f"{file}: {name}", lambda runs, damage=ANY_FILE[name], file=file: damage(_run(runs) / file)
    for name in ("cut", "garbage", "no text", "null", "nested", "a folder", "a dangling link", "unreadable"):
        yield f"journal: {name}", lambda runs, damage=ANY_FILE[name]: damage(runs / "journal.log")
    for name in ("a folder", "a dangling link"):
        yield f"journal's lock: {name}", lambda runs, damage=ANY_FILE[name]: damage(runs / "journal.log.flock")
        yield f"folder's id: {name}", lambda runs, damage=ANY_FILE[name]: damage(runs / ".id")
    yield "folder's id: no text", lambda runs: written(b"\xff")(runs / ".id")
    for name in ("garbage", "a dangling link", "a link to itself"):
        yield f"run folder: {name}", lambda runs, damage=ANY_FILE[name]: _instead(_run(runs), damage)
        yield f"arm folder: {name}", lambda runs, damage=ANY_FILE[name]: _instead(runs / "toy" / "top_k=1", damage)
        yield f"study folder: {name}", lambda runs, damage=ANY_FILE[name]: _instead(runs / "toy", damage)
        yield f"sweep file: {name}", lambda runs, damage=ANY_FILE[name]: _instead(runs / "toy" / ".sweeps", damage)
        yield f"looks: {name}", lambda runs, damage=ANY_FILE[name]: damage(runs / "toy" / "looks.jsonl")
        yield f"submissions: {name}", lambda runs, damage=ANY_FILE[name]: damage(runs / "toy" / "slurm")
        yield f"attempts: {name}", lambda runs, damage=ANY_FILE[name]: damage(_run(runs) / "attempts")
    yield "looks: of words", lambda runs: written("3\n[]\n")(runs / "toy" / "looks.jsonl")
    yield "an empty study", lambda runs: _instead(runs / "toy", Path.mkdir)
    yield "no permission", _forbidden


def _instead(path: Path, damage: Callable[[Path], None]) -> None:
    shutil.rmtree(path)
    damage(path)


def _forbidden(runs: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (runs / "toy").chmod(0o500)


FAULTS = dict(_faults())
# Those of which records are left that can be read: the page is drawn, which takes most of a command's time.
DRAWN = {
    f"record: {name}"
    for name in ("curves of other lengths", "validation without tokens", "another config", "load of other shapes")
} | {"design: an unknown metric", "run folder: garbage"}


@pytest.fixture(scope="module")
def template_folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    (place / "toy.py").write_text(DECLARATION)
    done = ablate("run", "toy.py", "--workers", "2", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(template_folder, tmp_path) -> Path:
    shutil.copytree(template_folder, tmp_path / "place", symlinks=True)
    return tmp_path / "place"


def whole(runs: Path) -> dict[Path, str]:
    """The hash of each record that can be read."""
    found = {}
    for path in sorted(runs.rglob("record.json")):
        with contextlib.suppress(OSError):
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def wrong(done) -> str | None:
    """What is wrong with how a command ended."""
    said = done.stdout + done.stderr
    if "--debug shows where" in said or "Traceback" in said:
        return next(line for line in said.splitlines() if "--debug" in line or "Error" in line or "Traceback" in line)
    if done.returncode not in (0, 1, 2):
        return f"status {done.returncode}"
    notes = ("note: the declaration was changed",)  # said before what a changed one may be refused for
    lines = [
        line for line in done.stderr.strip().splitlines() if not PROGRESS.match(line) and not line.startswith(notes)
    ]
    if done.returncode == 2 and len(lines) != 1:
        return f"not one line: {done.stderr[:300]}"
    return None


def undrawn() -> contextlib.AbstractContextManager[object]:
    """Inside, reports are empty pages. The patched name is looked up at each call: no module imported inside keeps it."""
    return mock.patch("analysis.report.html.render", return_value="")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_command_that_reads_answers_or_says_why_not(place, fault) -> None:
    runs = place / "runs"
    FAULTS[fault](runs)
    before = whole(runs)
    found = []
    drawn = contextlib.nullcontext() if fault in DRAWN else undrawn()
    probed = [PROBE] if "safetensors" in fault or "config.yaml" in fault else []
    with mock.patch.object(studies, "FOLDER", place), drawn:
        for command in (*READING, *probed):
            problem = wrong(ablate(*command, cwd=place))
            if problem:
                found.append(f"{' '.join(command)}: {problem}")
    with contextlib.chdir(place):
        try:
            poller = Poller("toy", Path("runs"), None, "report")
            poller.look()
        except UserError:
            pass
        except Exception as error:
            found.append(f"dashboard: {type(error).__name__}: {error}"[:300])
    now = whole(runs)
    lost = [path for path, digest in before.items() if now.get(path) != digest]
    assert not found and not lost, "\n".join([*found, *map(str, lost)])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sweep_says_what_is_wrong_or_goes_on_and_loses_no_other_run(place, fault) -> None:
    runs = place / "runs"
    damaged = _run(runs)
    FAULTS[fault](runs)
    before = {path: digest for path, digest in whole(runs).items() if path.parent != damaged}
    done = ablate("run", "toy.py", "--workers", "1", cwd=place)
    assert wrong(done) is None, done.stderr
    assert before.items() <= whole(runs).items()
    if done.returncode == 0:  # nothing is said to be finished that isn't
        assert "0 failed, 0 missing" in done.stdout
        assert "6 runs complete, 0 failed, 0 missing" in ablate("verify", "toy.py", cwd=place).stdout
    else:
        assert "\nablate: " in f"\n{done.stderr}"


def test_a_sweep_trains_what_is_damaged_again_and_nothing_else(place) -> None:
    study = place / "runs" / "toy"
    first, second, third = sorted(study.glob("top_k=1/seed-*"))
    cut(first / "record.json")
    folder(second / "record.json")
    dangling(third / "record.json")
    written("{")(study / "design.json")
    kept = {path: digest for path, digest in whole(study).items() if path.parent != first}
    done = ablate("run", "toy.py", "--workers", "1", cwd=place)
    assert done.returncode == 0 and "3 runs trained, 3 recorded before, 0 failed, 0 missing" in done.stdout, done.stderr
    now = whole(study)
    assert kept.items() <= now.items() and len(now) == 6
    assert (first / "attempts" / "1.json").is_file() and (second / "attempts" / "1.json").is_dir()
    assert "6 runs complete, 0 failed, 0 missing" in ablate("verify", "toy.py", cwd=place).stdout


@pytest.mark.parametrize(
    "name, damage",
    [("run folder", lambda run: _instead(run, written("x"))), ("run folder", lambda run: _instead(run, dangling)),
     ("lock", lambda run: folder(run / ".lock")), ("attempts", lambda run: written("x")(run / "attempts")),
     ("arm folder", lambda run: _instead(run.parent, written("x")))],
)  # fmt: skip
def test_a_sweep_says_what_is_in_its_way_and_trains_nothing(place, name, damage) -> None:
    damage(_run(place / "runs"))
    before = whole(place / "runs")
    done = ablate("run", "toy.py", cwd=place)
    assert done.returncode == 2 and wrong(done) is None and "move it away" in done.stderr, done.stderr
    assert whole(place / "runs") == before


def test_links_count_for_every_command_and_a_run_counts_once(place) -> None:
    study, elsewhere = place / "runs" / "toy", place / "elsewhere"
    elsewhere.mkdir()
    first, second, _ = sorted((study / "top_k=1").glob("seed-*"))
    (study / "top_k=2").rename(elsewhere / "arm")
    (study / "top_k=2").symlink_to(elsewhere / "arm")  # an arm on another disk
    first.rename(elsewhere / "run")
    first.symlink_to(elsewhere / "run")  # a run on another disk
    (study / "top_k=1" / f"{second.name}-again").symlink_to(second)  # a second name
    (study / "loop").symlink_to(study)
    (study / "top_k=1" / "loop").symlink_to("/")
    study.rename(elsewhere / "toy")
    study.symlink_to(elsewhere / "toy")  # the study too
    with undrawn():
        assert "runs: 6 complete, 0 failed, 0 missing" in ablate("report", "toy.py", cwd=place).stdout
    verified = ablate("verify", "toy.py", cwd=place)
    assert "6 runs complete, 0 failed, 0 missing: no problem found" in verified.stdout, verified.stdout
    done = ablate("run", "toy.py", cwd=place)
    assert "0 runs trained, 6 recorded before, 0 failed, 0 missing" in done.stdout, done.stderr
    with contextlib.chdir(place):
        poller = Poller("toy", Path("runs"), None, "report")
        poller.look()
        assert poller._known is not None and poller._known.complete == 6


def test_what_files_and_declarations_say_reaches_the_terminal_escaped(place) -> None:
    hostile = f"{ESCAPE}{FLIPPED}[red]\nablate: no problem found"
    declared = (place / "toy.py").read_text().replace('"Does top-k matter to a toy?"', repr(f"Does it?{hostile}"))
    (place / "toy.py").write_text(declared.replace('label="top-k"', f"label={hostile!r}"))
    design = place / "runs" / "toy" / "design.json"
    content = json.loads(design.read_text())
    content |= {
        "question": hostile * 200,
        "declared_in": "toy",  # as the patched folder of studies has it
        "arms": [arm | {"label": hostile, "notes": [hostile]} for arm in content["arms"]],
    }
    design.write_text(json.dumps(content))
    changed(status="failed", reason=hostile, alarms=[{"kind": hostile, "step": 1, "detail": hostile}])(
        _run(place / "runs") / "record.json"
    )
    with mock.patch.object(studies, "FOLDER", place), undrawn():
        for command in READING:
            done = ablate(*command, cwd=place)
            said = done.stdout + done.stderr
            assert ESCAPE[0] not in said and FLIPPED not in said, command
            assert not any(one.startswith("ablate: all can") for one in said.splitlines()), command
            assert wrong(done) is None, command
        assert "[red]" in ablate("plan", "toy.py", "--no-calibration", cwd=place).stdout

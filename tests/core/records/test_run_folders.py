"""Listing of a folder's runs, with links and other files in it."""

from pathlib import Path

from core.records.run_folders import list_runs


def _run(study: Path, arm: str, name: str) -> Path:
    folder = study / arm / name
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
    return folder


def test_links_are_followed_once_and_loops_end(tmp_path) -> None:
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    one = _run(study, "a", "seed-0")
    _run(elsewhere, "b", "seed-1")
    (study / "b").symlink_to(elsewhere / "b")
    (study / "a" / "seed-0-again").symlink_to(one)
    (study / "loop").symlink_to(study)
    (study / "a" / "up").symlink_to("/")
    found = list_runs(study)
    assert found.records == (study / "a/seed-0/record.json", study / "b/seed-1/record.json") and not found.broken


def test_what_is_set_aside_counts_for_nothing_and_what_is_broken_is_said(tmp_path) -> None:
    run = _run(tmp_path, "a", "seed-0")
    for name in ("attempts", "stages"):
        _run(run, name, "seed-0")
    (tmp_path / "a" / "seed-1").write_text("")
    (tmp_path / "a" / "seed-2").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b").symlink_to(tmp_path / "b")
    found = list_runs(tmp_path)
    assert found.records == (run / "record.json",)
    assert {path.name: reason for path, reason in found.broken} == {
        "seed-1": "a file, and no run's folder", "seed-2": "a link that leads nowhere", "b": "a link that leads nowhere"
    }  # fmt: skip
    assert not list_runs(tmp_path / "nowhere").records

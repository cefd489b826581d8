"""The hash of the source that trains runs covers every file that takes part."""

from core.records import versions


def test_a_change_of_any_room_that_trains_is_another_version(tmp_path, monkeypatch) -> None:
    """Kinds in folders of their own too: a router, an objective, a corpus, a metric."""
    parts = (
        "model/routers/a.py",
        "diffusion/objectives/a.py",
        "data/kinds/a.py",
        "training/metrics/a.py",
        "registry.py",
    )
    files = [tmp_path / "core" / part for part in parts] + [tmp_path / "sweeps" / "launch" / "worker.py"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    hashes = [versions.source_sha256.__wrapped__()]
    for file in files:
        file.write_text("x = 2\n")
        hashes.append(versions.source_sha256.__wrapped__())
    assert len(set(hashes)) == len(files) + 1
    (tmp_path / "core" / "probes").mkdir()
    (tmp_path / "core" / "probes" / "a.py").write_text("x = 1\n")  # measures what was trained
    assert versions.source_sha256.__wrapped__() == hashes[-1]

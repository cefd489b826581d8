"""Export of an arm: its config, with the evidence for it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config.loading import build
from core.config.run import to_yaml
from core.errors import UserError
from core.records.designs import Design, DesignArm, plain
from core.records.run_record import RunRecord, digest, write_atomically

CONFIG, EVIDENCE, CARD = "config.yaml", "evidence.json", "CARD.md"
FIRST_STAGE = "first_stage.yaml"


def export(
    design: Design, arm_name: str, records: Sequence[RunRecord], evidence: Mapping[str, Any], folder: Path
) -> None:
    """Write an arm's config.yaml, evidence.json and CARD.md; and, where its recipe has a first stage, first_stage.yaml: the
    weights that come of it are what trainer.initial_weights is then to name.

    records: the arm's complete runs; the config is that of the first (by seed). evidence: what was found, JSON-ready;
    what it rests on is added. Raises UserError as `basis_of` does.
    """
    basis = basis_of(design, arm_name, records)
    config = build(first_run(arm_name, records, design).config)
    write_atomically(folder / CONFIG, to_yaml(config))
    if "first" in basis["arm"]:
        write_atomically(folder / FIRST_STAGE, to_yaml(build(basis["arm"]["first"])))
    write_atomically(folder / EVIDENCE, json.dumps(basis | {"evidence": dict(evidence)}, indent=2) + "\n")
    told = (
        f"Made by `{basis['command']}`. `{CONFIG}` is the arm's whole config; `{EVIDENCE}` has every number and the hash "
        "of each record."
    )
    lines = [*card_head(basis, evidence), *settings_table(basis["arm"]), "", found_at(basis), "", told]
    write_atomically(folder / CARD, "\n".join(lines) + "\n")


def first_run(arm_name: str, records: Sequence[RunRecord], design: Design) -> RunRecord:
    """The arm's complete run of the smallest seed: not the best, which would flatter it. Raises UserError without one."""
    return _complete(arm_name, records, design)[0]


def _complete(arm_name: str, records: Sequence[RunRecord], design: Design) -> list[RunRecord]:
    """The arm's complete runs by seed, at least one."""
    arm_hash = arm_of(design, arm_name).hash
    runs = sorted((r for r in records if r.status == "complete" and r.arm_hash == arm_hash), key=lambda r: r.seed)
    if not runs:
        raise UserError(f"arm {arm_name} has no complete run; train it first: {design.command}")
    return runs


def arm_of(design: Design, name: str) -> DesignArm:
    """A design's arm by its name. Raises UserError for an unknown one."""
    if name not in design.by_name:
        raise UserError(f"unknown arm '{name}': the arms are {', '.join(design.by_name)}")
    return design.by_name[name]


def basis_of(design: Design, arm_name: str, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Basis of an arm's evidence: the design, seeds, commits, data, and the hash of each complete record of it.

    Raises UserError for an unknown arm and for no complete record of it.
    """
    arm, runs = arm_of(design, arm_name), _complete(arm_name, records, design)
    return {
        "ablation": design.ablation,
        "size": design.size,
        "question": design.question,
        "metric": design.metric,
        "arm": plain(arm),
        "control": design.control,
        "seeds": [run.seed for run in runs],
        "records": [
            {"seed": run.seed, "run_hash": run.run_hash, "sha256": digest(f"{run.to_json()}\n".encode())}
            for run in runs
        ],
        "commits": sorted({str(run.provenance.get("git_commit")) for run in runs}),
        "uncommitted_changes": any(run.provenance.get("git_dirty") for run in runs),
        "data_fingerprint": sorted({run.data_fingerprint for run in runs}),
        "command": design.command,
    }


def card_head(basis: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[str]:
    """A card's title and question, and what was found, number by number."""
    told = {
        key: value for key, value in evidence.items() if key not in ("question", "winner") and value not in (None, "")
    }
    found = [f"| {key} | {cell(_short(value))} |" for key, value in told.items() if not isinstance(value, dict | list)]
    lines = [f"# {cell(basis['ablation'])}: {cell(basis['arm']['label'])}", "", cell(basis["question"]), ""]
    lines += ["| finding | value |", "| --- | --- |", *found, ""] if found else []
    return lines + [line for note in evidence.get("notes") or () for line in (f"Note: {cell(note)}", "")]


def settings_table(arm: Mapping[str, Any]) -> list[str]:
    """An arm's settings and parameters."""
    settings = [f"| `{key}` | `{json.dumps(value)}` |" for key, value in arm["settings"].items()]
    sizes = f"{arm['parameters']['total']:,} parameters, {arm['parameters']['active']:,} of them active per token."
    return ["| setting | value |", "| --- | --- |", *settings, "", sizes]


def found_at(basis: Mapping[str, Any]) -> str:
    """Scale and data of an arm's verdict, in a sentence."""
    return (
        f"Judged by {basis['metric']} against {basis['control']} over {len(basis['seeds'])} seeds "
        f"({', '.join(map(str, basis['seeds']))}), {basis['size']} size, data {', '.join(basis['data_fingerprint'])}, "
        f"commit {', '.join(basis['commits'])}{' with uncommitted changes' if basis['uncommitted_changes'] else ''}."
    )


def cell(text: str) -> str:
    """Text that stays text in a Markdown table: no cell ends in it and no tag begins."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

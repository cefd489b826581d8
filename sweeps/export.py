"""The winning arm as files that others can train from, with the evidence that it won."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config import to_yaml
from core.errors import UserError
from core.records import RunRecord, digest, write_atomically
from core.settings import build


def export(
    design: Mapping[str, Any], arm_name: str, records: Sequence[RunRecord], evidence: Mapping[str, Any], folder: Path
) -> None:
    """Write an arm's config.yaml, evidence.json and CARD.md; and, where its recipe has a first stage, first_stage.yaml: the
    weights that come of it are what trainer.initial_weights is then to name.

    records: the arm's complete runs; the config is that of the first (by seed). evidence: what was found, JSON-ready;
    the hashes of the records that it rests on, their seeds, commits and data are added.
    Raises UserError for an unknown arm and for no complete record of it.
    """
    arms = {arm["name"]: arm for arm in design["arms"]}
    if arm_name not in arms:
        raise UserError(f"unknown arm '{arm_name}': the arms are {', '.join(arms)}")
    arm = arms[arm_name]
    runs = sorted((r for r in records if r.status == "complete" and r.arm_hash == arm["hash"]), key=lambda r: r.seed)
    if not runs:
        raise UserError(f"arm {arm_name} has no complete run; train it first: {design['command']}")
    basis = {
        "ablation": design["ablation"],
        "size": design["size"],
        "question": design["question"],
        "metric": design["metric"],
        "arm": dict(arm),
        "control": design["control"],
        "seeds": [run.seed for run in runs],
        "records": [
            {"seed": run.seed, "run_hash": run.run_hash, "sha256": digest(f"{run.to_json()}\n".encode())}
            for run in runs
        ],
        "commits": sorted({str(run.provenance.get("git_commit")) for run in runs}),
        "uncommitted_changes": any(run.provenance.get("git_dirty") for run in runs),
        "data_fingerprint": sorted({run.data_fingerprint for run in runs}),
        "command": design["command"],
    }
    config = build(runs[0].config)
    write_atomically(folder / "config.yaml", to_yaml(config))
    if "first" in arm:
        write_atomically(folder / "first_stage.yaml", to_yaml(build(arm["first"])))
    write_atomically(folder / "evidence.json", json.dumps(basis | {"evidence": dict(evidence)}, indent=2) + "\n")
    write_atomically(folder / "CARD.md", _card(basis, evidence))


def _card(basis: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    arm = basis["arm"]
    settings = [f"| `{key}` | `{json.dumps(value)}` |" for key, value in arm["settings"].items()]
    found = [f"| {key} | {_short(value)} |" for key, value in evidence.items() if not isinstance(value, dict | list)]
    lines = [
        f"# {basis['ablation']}: {arm['label']}",
        "",
        basis["question"],
        "",
        "| setting | value |",
        "| --- | --- |",
        *settings,
        "",
        f"{arm['parameters']['total']:,} parameters, {arm['parameters']['active']:,} of them active per token.",
        "",
        *(["| finding | value |", "| --- | --- |", *found, ""] if found else []),
        f"Judged by {basis['metric']} against {basis['control']} over {len(basis['seeds'])} seeds "
        f"({', '.join(map(str, basis['seeds']))}), {basis['size']} size, data {', '.join(basis['data_fingerprint'])}, "
        f"commit {', '.join(basis['commits'])}{' with uncommitted changes' if basis['uncommitted_changes'] else ''}.",
        "",
        f"Made by `{basis['command']}`. `config.yaml` is the arm's whole config; `evidence.json` has every number and "
        "the hash of each record.",
    ]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""`ablate verify`: hash the records of a study again, and list the problems found."""

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.cli import studies
from ablations.cli.declarations import nothing_recorded
from ablations.cli.terminal import console, show_json
from analysis.verdicts.sequential_log import contradictions
from core.errors import UserError
from core.records import designs, interim_analyses
from core.runtime.terminal import Terminal
from core.runtime.units import counted
from sweeps.kinds import operations_of
from sweeps.runs.record_checks import Finding, Verification, settled
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import JOURNAL, choose_url, open_storage
from sweeps.studies.study import study_name


def run_verify(arguments: argparse.Namespace) -> int:
    """Hash everything again and print a line per finding. Returns 1 where there is a problem, else 0."""
    name, declaration = studies.declared(arguments.name)
    sizes = studies.recorded_sizes(arguments.out, name, declaration)
    size = arguments.size or studies.meant_size(name, declaration, arguments.out, None, first_of_several=True)
    if not sizes:
        raise nothing_recorded(arguments, name, size)
    if size not in sizes:
        known = ", ".join(sizes)
        raise UserError(f"nothing is recorded of {name} ({size}) in {arguments.out.absolute()}: recorded are {known}")
    study = study_name(name, size)
    storage = _storage(arguments, study)
    found = operations_of(declaration.kind).verify(study, arguments.out, storage)
    found[study] = settled(lambda own=found[study]: _with_analyses(own, sizes[size]))  # type: ignore[misc]
    if said := getattr(arguments, "drift", ""):
        found[study] = replace(
            found[study], findings=(*found[study].findings, Finding(designs.FILE_NAME, said, note=True))
        )
    if arguments.json:
        first, *others = (_content(*each) for each in found.items())
        show_json(first | {"confirmation": others[0]} if others else first)
    else:
        for each in found.items():
            _show(*each, console())
    return int(not all(each.trusted for each in found.values()))


def _with_analyses(found: Verification, folder: Path) -> Verification:
    """Add what interim analyses that were noted say against the records."""
    name = interim_analyses.FILE_NAME
    try:
        more = tuple(Finding(name, text, note=note) for text, note in contradictions(folder))
    except UserError as error:
        more = (Finding(name, str(error)),)
    return replace(found, findings=found.findings + more)


def _content(study: str, found: Verification) -> dict[str, Any]:
    content = {"study": study, "trusted": found.trusted, "complete": found.complete, "paused": found.paused}
    content |= {"failed": found.failed, "missing": found.missing}
    return content | {"findings": [vars(finding) for finding in found.findings]}


def _show(study: str, found: Verification, out: Terminal) -> None:
    for finding in found.findings:
        out.unwrapped(f"{'note: ' if finding.note else ''}{finding}")
    wrong = sum(not finding.note for finding in found.findings)
    verdict = f"{counted(wrong, 'problem')} found" if wrong else "no problem found"
    paused = f", {found.paused} paused" if found.paused else ""
    counts = f"{counted(found.complete, 'run')} complete{paused}, {found.failed} failed, {found.missing} missing"
    out.unwrapped(f"{study}: {counts}: {verdict}")


def _storage(arguments: argparse.Namespace, study: str) -> PatientStorage | None:
    """The ledger; None where there is none. Nothing is written."""
    url = choose_url(arguments.storage, arguments.out.absolute(), arguments.out.absolute() / study)
    scheme, _, path = url.partition(":")
    if scheme == JOURNAL and not os.path.isfile(os.path.expanduser(path)):
        if arguments.storage:
            raise UserError(f"--storage: there is no file {shlex.quote(path)}")
        return None
    return open_storage(url)

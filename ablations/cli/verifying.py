"""`ablate verify`: what of an ablation's records can't be trusted."""

import argparse
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

from ablations.cli import agenda
from ablations.cli.commands import console, show_json
from core.errors import UserError
from sweeps.spec import study_name
from sweeps.storage import JOURNAL, choose_url, open_storage
from sweeps.trials import key_of
from sweeps.verify import verify


def run_verify(arguments: argparse.Namespace) -> int:
    """Re-hash everything; one line per finding. Returns 0 when all can be trusted, else 1."""
    name, ablation = agenda.resolve(arguments.name)
    sizes = agenda.recorded_sizes(arguments.out, name, ablation)
    size = arguments.size or ("full" if "full" in sizes else next(iter(sizes), "full"))
    if size not in sizes:
        known = f": recorded are {', '.join(sizes)}" if sizes else ""
        raise UserError(f"nothing is recorded of {name} ({size}) in {arguments.out.absolute()}{known}")
    found = verify(sizes[size], _told(arguments, study_name(name, size)))
    if arguments.json:
        content = {"study": study_name(name, size), "trusted": found.trusted, "complete": found.complete}
        content |= {"failed": found.failed, "missing": found.missing}
        show_json(content | {"findings": [vars(finding) for finding in found.findings]})
        return int(not found.trusted)
    out = console()
    for finding in found.findings:
        out.print(f"{'note: ' if finding.note else ''}{finding}", markup=False, soft_wrap=True)
    wrong = sum(not finding.note for finding in found.findings)
    verdict = "all can be trusted" if found.trusted else f"{wrong} thing{'s' if wrong > 1 else ''} can't be trusted"
    counts = f"{found.complete} runs complete, {found.failed} failed, {found.missing} missing"
    out.print(f"{study_name(name, size)}: {counts}: {verdict}", markup=False, soft_wrap=True)
    return int(not found.trusted)


def _told(arguments: argparse.Namespace, study: str) -> dict[tuple[str, str], list[Any]] | None:
    """The ledger's trials by run; None where there is no ledger. Nothing is written."""
    url = choose_url(arguments.storage, arguments.out.absolute(), arguments.out.absolute() / study)
    scheme, _, path = url.partition(":")
    if scheme == JOURNAL and not Path(path).expanduser().is_file():
        if arguments.storage:
            raise UserError(f"--storage: there is no file {shlex.quote(path)}")
        return None
    storage = open_storage(url)
    try:
        trials = storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False)
    except KeyError:
        return None
    told = defaultdict(list)
    for trial in trials:
        if any(key_of(trial)):
            told[key_of(trial)].append(trial)
    return told

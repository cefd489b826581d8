"""Changes of a search's declaration since it was last run: its space, budget and seeds, as far as the design says them."""

import argparse
import json
import shlex

from ablations.cli import studies
from ablations.cli.declarations import recorded_design
from ablations.cli.drift import last_command
from core.records.designs import SearchDesign
from sweeps.search.spec import Search, to_json
from sweeps.studies.study import study_name


def drift(arguments: argparse.Namespace, size: str) -> str:
    """The differences between a declaration and its recorded design, and the command to type; empty if there are none."""
    name, search = studies.declared(arguments.name)
    design = recorded_design(arguments.out / study_name(name, size))
    if not isinstance(design, SearchDesign) or not isinstance(search, Search) or size not in ("full", *search.sizes):
        return ""
    now = json.loads(json.dumps(to_json(search.sized(size))))
    skipped = {"sizes"} | ({"seeds"} if "--seeds" in shlex.split(design.command) else set())
    changed = [key for key in now if key in design.declared and key not in skipped and design.declared[key] != now[key]]
    if not changed:
        return ""
    command = last_command(arguments, size, design)
    said = ", ".join(changed)
    return f"the declaration was changed since this search was planned: {said}: `{command}` goes by what it is now"

"""History of a study: changed designs, results that were shown, mixed versions of the code."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from analysis.study import Study
from core.records.designs import Design, parse_or_none
from core.records.provenance import mixture
from core.records.study_history import DesignEvent, Event, Look, changes, designs_of, spans
from core.runtime.units import counted


def events_of(study: Study) -> list[Event]:
    """The study's events, oldest first: as they were noted, and before that as its records tell of designs; the design
    that it is judged by last."""
    noted = study.history
    whole = bool(noted) and noted[0].recorded == 0  # from before the first run on
    found: list[Event] = [] if whole else list(_of_records(study, noted[0].at if noted else ""))
    first, told = noted[0] if noted else None, designs_of(found)
    skips = bool(told) and isinstance(first, DesignEvent) and not changes(told[-1].design, first.design)
    found += noted[skips:]
    last = designs_of(found)
    if not last or changes(last[-1].design, study.design):
        found.append(DesignEvent(at="", recorded=study.complete, design=study.design))
    return found


def _of_records(study: Study, before: str) -> Iterator[DesignEvent]:
    """The designs that records were trained for, as far as they began before that time."""
    last, content = None, None
    records = sorted(study.cells.values(), key=lambda record: record.started_at)
    for count, record in enumerate(records):
        if (before and not record.started_at < before) or record.study.get("design") == content:
            continue
        content = record.study.get("design")
        design = parse_or_none(content)
        if not isinstance(design, Design):
            continue  # none, or damaged
        design = replace(design, adaptive=None, command="")  # what changes from block to block
        if last is None or changes(last, design):
            commit = record.provenance.get("git_commit")
            yield DesignEvent(at=record.started_at, git_commit=commit, recorded=count, design=design)
        last = design


def declared(study: Study) -> str:
    """Date and commit of a study's declaration and each change since, in a sentence; empty if unknown."""
    designs = designs_of(events_of(study))
    first, parts = designs[0], []
    if not first.at and len(designs) == 1:
        return ""
    for was, now in itertools.pairwise(designs):
        said = "; ".join(changes(was.design, now.design))
        when = f"on {_day(now)}, " if now.at else ""
        parts.append(f"{when}after {counted(now.recorded, 'run')}: {said or 'how seeds are bought'}")
    commit = f" at commit {first.git_commit[:12]}" if first.git_commit else ""
    since = f"; changed since: {' | '.join(parts)}" if parts else ""
    return f"Declared on {_day(first) or 'a day that nothing tells'}{commit}{since}."


def _day(event: Event) -> str:
    return event.at[:16].replace("T", " ")


def notes(study: Study) -> tuple[str, ...]:
    """Notes on the verdict that its numbers don't show."""
    events = events_of(study)
    finished = [record for record in study.cells.values() if record.status == "complete"]
    mixed = mixture(finished)
    command = f"`{study.design.command} --out ANOTHER`" if study.design.command else "the same run in another --out"
    said = [f"{mixed}; {command} trains all of them by one" if mixed else ""]
    said += [study.history_trouble, _changed_criteria(events), _earlier_confirmations(study, events)]
    return tuple(f"{each.rstrip('.')}." for each in said if each)


def _changed_criteria(events: list[Event]) -> str:
    """That what decides was changed once there were runs."""
    changed = [
        f"{name} from {getattr(was.design, name)} to {getattr(now.design, name)} after {counted(now.recorded, 'run')}"
        for was, now in itertools.pairwise(designs_of(events))
        if now.recorded and isinstance(was.design, Design) and isinstance(now.design, Design)
        for name in ("metric", "margin", "alpha")
        if getattr(was.design, name) != getattr(now.design, name)
    ]
    return f"Changed once runs were recorded: {'; '.join(changed)}" if changed else ""


def _earlier_confirmations(study: Study, events: list[Event]) -> str:
    """Of a confirmation: what was tried before on fresh seeds."""
    design = study.design
    if design.confirms is None:
        return ""
    tried: dict[tuple[str, str], str] = {}
    current, mine = None, (design.confirms, spans(design.seeds))
    for event in events:
        if isinstance(event, DesignEvent):
            arm = event.design.confirms if isinstance(event.design, Design) else None
            current = (str(arm), spans(event.design.seeds))
        elif isinstance(event, Look) and current is not None and event.recorded:
            tried[current] = "confirmed" if event.winner == current[0] else "not confirmed"
    before = [f"{arm} on seeds {seeds} ({came})" for (arm, seeds), came in tried.items() if (arm, seeds) != mine]
    if not before:
        return ""
    count = len(before) + 1
    return (
        f"This is confirmation {count}; tried before: {', '.join(before)}. Beside alpha / {count} = "
        f"{design.alpha / count:.3g} its p-value holds whatever the others showed"
    )


def optional_stopping(study: Study) -> str:
    """That seeds were added, or bought until decided, once results had been there to look at; empty where none were."""
    design, counts, seen, unseen = study.design, list[int](), 0, False
    shown = adaptive = False
    for event in events_of(study):
        if not isinstance(event, DesignEvent):
            shown = shown or (event.recorded > 0 and not adaptive)
            continue
        seeds, was = len(event.design.seeds), adaptive
        adaptive = isinstance(event.design, Design) and event.design.adaptive is not None
        more = bool(counts) and (seeds > max(counts) or (adaptive and not was))
        seen, unseen = seen + (more and shown), unseen or (more and not shown and event.recorded > 0)
        shown = shown and not more
        counts += [seeds] if not counts or seeds > max(counts) else []
    times = f"{seen} time{'s' if seen > 1 else ''}"
    level = f"only p-values below alpha / {seen + 1} = {design.alpha / (seen + 1):.3g} hold whatever was seen"
    if design.adaptive is not None:
        if seen:
            said = f"Results were shown {times} before these seeds were bought until decided"
            return f"{said}, which p-values and intervals don't allow for: {level}."
        said = "Runs of a fixed design were there before seeds were bought until decided: error rates hold if none was seen."
        return said if unseen else ""
    if design.confirms is None and len(design.seeds) < max(counts):
        return f"Fewer seeds are judged than were planned before ({max(counts)}): p-values don't allow for that choice."
    if len(counts) < 2 or design.confirms is not None:
        return ""
    grew = f"Seeds were added: {counts[0]} were planned first, then {', then '.join(map(str, counts[1:]))}"
    if seen:
        return (
            f"{grew}, and results were shown {times} before that. So this is no test of a fixed sample, and p-values and "
            f"intervals don't allow for it: {level} (--until-decided allows for looks)."
        )
    smaller = "p-values are smaller than they should be (--until-decided allows for looks)"
    return f"{grew}. If the first were looked at, {smaller}."

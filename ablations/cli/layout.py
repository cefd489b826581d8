"""`ablate layout`: how to spread a run over a cluster, what it needs of a device, and what it takes."""

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from core.capacity import memory as of_memory
from core.capacity import timing as of_time
from core.capacity.assumptions import DEFAULT
from core.capacity.calibration import Calibration
from core.capacity.clusters import GB, Cluster
from core.capacity.layouts import Layout, settings
from core.capacity.planning import Plan, plan, reasons
from core.config.loading import parse_overrides
from core.config.presets import resolve
from core.errors import UserError
from core.model.flops import count
from core.records import run_record
from core.records.run_record import UnreadableRecordError
from core.runtime.printable import say
from core.runtime.units import parse, short

RUNNERS_UP = 5
WIDTH = 80


def run_layout(arguments: argparse.Namespace) -> int:
    """Print the fastest layout that fits, or the config's own, with its memory, time, MFU and cost."""
    config = resolve(arguments.config, parse_overrides(arguments.settings))
    cluster = Cluster.parse(arguments.cluster)
    given = {
        name: getattr(arguments, name) for name in ("headroom", "imbalance") if getattr(arguments, name) is not None
    }
    made = plan(
        config,
        cluster,
        layout=Layout.of(config, cluster.devices) if arguments.as_is else None,
        calibration=_calibration(arguments.calibrate),
        assumptions=replace(DEFAULT, **given),
        across_nodes=arguments.across_nodes,
        offload=not arguments.no_offload,
    )
    tokens = parse(arguments.tokens) if arguments.tokens else config.tokens_per_step * config.trainer.steps
    content = describe(arguments.config, made, tokens)
    if arguments.json:
        say(json.dumps(content, indent=2))
    else:
        say("\n".join(_lines(made, content)))
    return 0


def describe(name: str, made: Plan, tokens: float) -> dict[str, Any]:
    """A plan as plain values: bytes, seconds, tokens."""
    return {
        "name": name,
        "cluster": str(made.cluster),
        "parameters": vars(count(made.config.model)),
        "sequence_length": made.config.data.sequence_length,
        "batch_size": made.config.trainer.batch_size,
        "layout": asdict(made.layout),
        "settings": settings(made.layout),
        "memory": {"parts": dict(made.memory.parts)}
        | {name: getattr(made.memory, name) for name in ("moment", "total", "limit", "capacity", "host")},
        "step_s": {"parts": dict(made.time.parts), "hidden": made.time.hidden, "total": made.time.total},
        "mfu": made.mfu,
        "tokens_per_second": made.tokens_per_second,
        "tokens": tokens,
        "days": made.days(tokens),
        "gpu_hours": made.gpu_hours(tokens),
        "others": [
            {"layout": asdict(one.layout), "step_s": one.time.total, "memory": one.memory.total} for one in made.others
        ],
        "refused": [{"layout": asdict(one.layout), "reason": one.reason} for one in made.refused],
        "calibration": asdict(made.calibration) if made.calibration else None,
    }


def _calibration(path: Path | None) -> Calibration | None:
    if path is None:
        return None
    file = path / run_record.FILE_NAME if path.is_dir() else path
    try:
        return Calibration.of_record(run_record.RunRecord.from_json(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, UnreadableRecordError) as error:
        raise UserError(f"--calibrate {path}: no record can be read there: {error}") from None


def _lines(made: Plan, content: Mapping[str, Any]) -> Iterator[str]:
    size, batch, length = content["parameters"], content["batch_size"], content["sequence_length"]
    yield f"{content['name']} on {made.cluster}"
    yield f"{short(size['total'])} parameters, {short(size['active'])} active; {batch} sequences of {length} a step"
    yield ""
    yield f"layout: {made.layout}"
    yield from _wrapped(" ".join(f"{key}={_value(value)}" for key, value in content["settings"].items()), "  ")
    yield ""
    held = made.memory
    yield f"memory of a device, {of_memory.MOMENTS[held.moment]}"
    yield from _table({of_memory.PARTS[name]: f"{size / GB:.2f} GB" for name, size in held.parts.items()})
    yield from _table({"sum": f"{held.total / GB:.2f} GB", "of (headroom left)": f"{held.limit / GB:.2f} GB"})
    yield f"  host memory: {held.host / GB:.0f} of {held.host_capacity / GB:.0f} GB a device"
    yield ""
    yield "time of a step"
    yield from _table({of_time.PARTS[name]: f"{part * 1e3:.1f} ms" for name, part in made.time.parts.items() if part})
    yield from _table({"sum": f"{made.time.total * 1e3:.1f} ms"})
    if made.time.hidden:
        yield f"  beside {made.time.hidden * 1e3:.1f} ms of ZeRO-3's gathers and reductions, hidden"
    if made.calibration is not None:
        yield from _wrapped(str(made.calibration), "  ")
    yield ""
    yield (
        f"MFU {made.mfu:.1%}, {short(made.tokens_per_second)} tokens/s: {short(content['tokens'])} tokens take "
        f"{content['days']:.3g} days, {short(content['gpu_hours'])} GPU-hours"
    )
    yield from _rest(made)


def _rest(made: Plan) -> Iterator[str]:
    if made.others:
        yield ""
        yield f"next of {len(made.others)} more that fit"
        for one in made.others[:RUNNERS_UP]:
            slower = one.time.total / made.time.total
            yield f"  {one.layout!s:<48} {slower:6.2f} x the time {one.memory.total / GB:7.1f} GB"
    if made.refused:
        yield ""
        yield f"{len(made.refused)} that can't fit, by their largest part"
        for name, times in reasons(made.refused):
            yield f"  {times:>4}  {name}"
        nearest = min(made.refused, key=lambda one: one.memory.missing)
        yield from _wrapped(f"the nearest, {nearest.layout}: {nearest.reason}", "  ")


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    for name, value in rows.items():
        yield f"  {name:<52} {value:>14}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

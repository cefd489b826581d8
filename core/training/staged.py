"""Training in stages: each a run of its own, with its own record, from weights of the stage before.

<root>/1-NAME/, 2-NAME/, ...   each a run's folder, and in it
    stage.json                 which stage it is, and the weights that it started from: what tells whether it is done
A stage whose settings, data or beginnings have changed gets a folder beside the old one (2-NAME-2): nothing finished is
written over.
"""

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config.run import RunConfig
from core.config.stages import LAST, Stage
from core.data.inputs import fingerprint
from core.errors import UserError
from core.records import pending_record, run_record
from core.records.metrics import RowLogger
from core.records.run_record import FILE_NAME, RunRecord, UnreadableRecordError
from core.runtime.paths import file_sha256
from core.runtime.ranks import Ranks
from core.training.checkpoint_files import BEST, WEIGHTS
from core.training.checks import check_stages

STAGE_FILE = "stage.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """A stage that is up: its folder, its config with the weights that it starts from, and where those are from.

    started_from: {"stage", "step", "metric", "value", "weights_sha256"}; None for the first stage. record: of a stage that
    is done already.
    """

    stage: Stage
    number: int
    folder: Path
    config: RunConfig
    started_from: dict[str, Any] | None = None
    record: RunRecord | None = None


class Watcher:
    """Follows a staged training; this one says nothing."""

    def begins(self, turn: Turn) -> Sequence[RowLogger]:
        """Called as a stage begins, or goes on, or is found to be done: what its rows are logged to."""
        return ()

    def ended(self, turn: Turn, record: RunRecord) -> None:
        """Called once a stage has been trained."""


def root_of(stages: Sequence[Stage], out: Path) -> Path:
    """The folder of a staged training: named by its first stage, so that later ones may change and keep what is done."""
    return out / "train" / stages[0].identity


def train_stages(
    stages: Sequence[Stage],
    out: Path,
    *,
    devices: int = 1,
    watcher: Watcher | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> list[tuple[Turn, RunRecord]]:
    """Train what isn't done yet of the stages, in order, below `root_of(stages, out)`.

    A stage that is done is not trained again; one that was cut off or failed goes on from its checkpoint, a failed record set
    aside. ranks: where a launcher started several processes, each calls this; they train the last stage, and those before it
    must be done. Returns each stage's record, the last one's of status "failed" where a stage failed. Raises UserError as
    `check_stages` does, and for weights that are gone or have changed since they were recorded, and TrainingPausedError.
    """
    check_stages(stages, max(ranks.size, devices))
    from core.training.run import train  # torch and Lightning, which mistakes are refused without

    watcher, root = watcher or Watcher(), root_of(stages, out)
    done: list[tuple[Turn, RunRecord]] = []
    for number, stage in enumerate(stages, start=1):
        turn = _turn(stage, number, root, done[-1] if done else None, first=ranks.rank == 0)
        if turn.record is None and ranks.size > 1 and stage is not stages[-1]:
            raise UserError(
                f"stage {stage.name} isn't done, and processes that were started together train one stage: --stage "
                f"{stage.name} trains it"
            )
        loggers = watcher.begins(turn)
        record = turn.record
        if record is None:
            study = {"stage": stage.name, "number": number, "started_from": turn.started_from}
            former = done[-1][1] if done else None
            record = train(turn.config, turn.folder, loggers=loggers, study=study, devices=devices, before=former)
            watcher.ended(turn, record)
        done.append((turn, record))
        if record.status != "complete":
            break
    return done


def _turn(stage: Stage, number: int, root: Path, former: tuple[Turn, RunRecord] | None, *, first: bool = True) -> Turn:
    """Find the state of a stage. first: of the processes that train it, which alone writes."""
    started_from, config = None, stage.config
    if former is not None:
        weights, started_from = handed_on(*former)
        config = replace(config, trainer=replace(config.trainer, initial_weights=str(weights.resolve())))
    said = {
        "stage": stage.name,
        "identity": stage.identity,
        "data_fingerprint": fingerprint(stage.config),
        "started_from": started_from,
    }
    folder = _place(root / f"{number}-{stage.name}", said)
    turn = Turn(stage, number, folder, config, started_from)
    if first and not (folder / FILE_NAME).exists() and (spilled := pending_record.find(folder)) is not None:
        pending_record.keep(spilled, folder)
        pending_record.discard(folder)
    if (folder / FILE_NAME).exists():
        try:
            record = run_record.read(folder / FILE_NAME)
        except UnreadableRecordError as error:
            log.warning("%s; it is set aside, and the stage is trained again", error)
        else:
            if record.status == "complete":
                return replace(turn, record=record)
        if first:
            run_record.set_aside(folder)
    if not first:
        return turn
    if started_from is not None:
        _check_unchanged(stage, weights, started_from["weights_sha256"])
    run_record.write_atomically(folder / STAGE_FILE, json.dumps(said, indent=2) + "\n")
    return turn


def handed_on(turn: Turn, record: RunRecord) -> tuple[Path, dict[str, Any]]:
    """The weights that a finished stage hands on, and what the next one's record says of them.

    Raises UserError where none were kept, for want of room.
    """
    stage, best = turn.stage, record.best
    if stage.select == LAST:
        best = {"metric": LAST, "value": None, "step": stage.config.trainer.steps}
        best["weights_sha256"] = record.provenance.get("weights_sha256")
    if best.get("weights_sha256") is None:
        raise UserError(
            f"stage {stage.name} has kept no weights to go on from (its log says why): make room, remove {turn.folder} and "
            "train it again"
        )
    return turn.folder / (WEIGHTS if stage.select == LAST else BEST), {"stage": stage.name, **best}


def _place(wanted: Path, said: dict[str, Any]) -> Path:
    """The folder of the stage that `said` describes, or a free one."""
    for count in itertools.count(1):
        folder = wanted if count == 1 else wanted.with_name(f"{wanted.name}-{count}")
        try:
            if json.loads((folder / STAGE_FILE).read_text(encoding="utf-8")) == said:
                return folder
        except FileNotFoundError:
            return folder
        except ValueError:
            log.warning("%s can't be read: %s is left alone", folder / STAGE_FILE, folder)
    raise AssertionError


def _check_unchanged(stage: Stage, weights: Path, wanted: str) -> None:
    try:
        found = file_sha256(weights)
    except FileNotFoundError:
        raise UserError(
            f"stage {stage.name} starts from {weights}, which is gone: train the stage before again"
        ) from None
    if found != wanted:
        raise UserError(
            f"stage {stage.name} starts from {weights}, which isn't the file that its stage recorded: train that again"
        )

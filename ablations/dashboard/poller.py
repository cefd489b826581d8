"""Poller: the thread that keeps the page's content up to date from queue, records and judgement."""

import gc
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.dashboard import sections
from ablations.dashboard.curves import LOSS, Curves, Reading, RecordReader
from ablations.dashboard.state import PageState
from analysis.figure import ARM_COLOURS
from analysis.study import Study
from core.errors import UserError
from core.records.designs import Design, StudyDesign
from core.runtime.retry import OutOfPatienceError, Patience
from sweeps.kinds import Operations, operations_of
from sweeps.launch.launcher import tasks_of
from sweeps.runs.history import add_look
from sweeps.runs.progress import curve_metrics, read_progress
from sweeps.runs.status import RunStatus, StudyStatus, open_known, read_design
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import choose_url

PAUSE_S, REST = 2.0, 4.0  # between looks, and of a look's own time: a fifth of a core at most
PATIENCE_S = 5.0
Found = StudyStatus[Any]


def favour_requests() -> None:
    """Make this process answer promptly while a thread of it reads and judges: threads change after 1 ms instead of 5, and
    what was imported isn't looked through for garbage any more, which takes 0.1 s at a time."""
    sys.setswitchinterval(1e-3)
    gc.collect()
    gc.freeze()


class Poller:
    """Looks at a study again and again, and keeps the page's state; says what can't be read ("trouble"), and tries again."""

    def __init__(self, study: str, out: Path, url: str | None, report: str) -> None:
        """report: the command that writes the report. Raises UserError where nothing of the study has been run."""
        self.study, self.out, self.state = study, out, PageState()
        self._url, self._report = url, report
        self.storage: PatientStorage | None = None  # the ledger's, once it could be opened
        self._reader: RecordReader | None = None
        self._reading: Reading | None = None
        self._known: Study | None = None
        self._curves, self._unjudged, self._due = Curves(), list[str](), False
        self._before: dict[str, Mapping[str, Any]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="poller")
        self.design = read_design(study, out)
        self._head()

    def start(self) -> None:
        """Look from now on, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Bring the page's state up to date."""
        trouble: list[str] = []
        try:
            self.design = read_design(self.study, self.out)
        except ValueError as error:  # not written atomically, by hand
            trouble.append(f"the design can't be read: {error}")
        self._head()
        found = self._ledger(trouble)
        rows = self._training(found)
        folder, design = self._compared(found)
        shown = None
        if design is not None:
            shown = self._read(folder, design, found)
            self._draw(shown, rows)
            if self._due:
                self._judge(shown, folder)
                self._due = False  # only now: what failed is tried again at the next look
            trouble += self._unjudged
        self._tell(found, rows, shown)
        self.state.put("trouble", trouble)

    def _watch(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self.look()
            except Exception as error:  # whatever it is belongs on the page, which goes on
                first = (str(error).splitlines() or ["no message"])[0]
                self.state.put(
                    "trouble", [f"this page couldn't be brought up to date: {type(error).__name__}: {first}"]
                )
            self._stop.wait(max(PAUSE_S, REST * (time.monotonic() - began)))

    def _head(self) -> None:
        self.state.put("head", sections.head(self.design, self._report))

    @property
    def _operations(self) -> Operations:
        return operations_of(self.design.kind)

    def _ledger(self, trouble: list[str]) -> Found | None:
        try:
            if self.storage is None:
                url = choose_url(self._url, self.out, self.out / self.study)
                self.storage = open_known(self.study, url, Patience(limit_s=PATIENCE_S))
            return self._operations.status(self.study, self.out, self._url, storage=self.storage, tasks_of=tasks_of)
        except (ValueError, OutOfPatienceError) as error:
            trouble.append(f"the ledger can't be read, so what waits or trains isn't shown: {error}")
            return None

    def _training(self, found: Found | None) -> list[dict[str, Any]]:
        """Each run in training with its progress; of a search, each configuration."""
        studies = [each for each in (found, found and found.confirmation) if each is not None]
        rows: list[dict[str, Any]] = []
        for row in (row for each in studies for row in each.of("running")):
            progress = (read_progress(self.out / row.folder) or {}) if row.folder else {}
            rate = sections.rate(self._before.get(row.folder or ""), progress)
            rows.append({"status": row, "progress": progress, "rate": rate})
        self._before = {row["status"].folder: row["progress"] for row in rows if row["progress"]}
        return rows

    def _read(self, folder: Path, design: Design, found: Found | None) -> Study:
        """Read what changed of the records, saying how far it is; a verdict is due where anything did."""
        metrics = curve_metrics(design)
        if self._reader is None or self._reader.folder != folder or self._reader.metrics != metrics:
            self._reader = RecordReader(folder, metrics)
        changed = self._known is None or self._known.design != design
        for reading in self._reader.read():
            self._reading, changed = reading, changed or reading.changed
            if reading.done < reading.total:
                self.state.put("progress", sections.progress(found, self._reader.study(design), reading))
        if changed or self._known is None:
            self._known, self._due = self._reader.study(design), True
        return self._known

    def _compared(self, found: Found | None) -> tuple[Path, Design | None]:
        """Folder and design of the compared records; a search's are its confirmation's, once that has begun."""
        name = self._operations.folders(self.study)[-1]
        own: StudyDesign | None = self.design
        if name != self.study:
            own = read_design(name, self.out) if found is not None and found.confirmation is not None else None
        return self.out / name, own if isinstance(own, Design) else None

    def _draw(self, study: Study, rows: list[dict[str, Any]]) -> None:
        """A section for each arm, so that a run that changes one of them doesn't send all."""
        training: dict[str, list[Mapping[str, Any]]] = {arm: [] for arm in study.arms}
        for row in rows:
            if isinstance(row["status"], RunStatus):
                training[row["status"].arm].append(row["progress"])
        charts = [name for name in curve_metrics(study.design) if name not in (LOSS, study.design.metric)]
        curves = {arm: self._curves.of(study, arm, training[arm], charts) for arm in study.arms}
        for place, arm in enumerate(study.arms):
            about = {"name": arm, "label": study.labels[arm], "colour": ARM_COLOURS[place % len(ARM_COLOURS)]}
            self.state.put(f"curve {place}", about | curves[arm])
        seen = [name for name in charts if any(curves[arm][name]["tokens"] for arm in study.arms)]
        self.state.put("curves", {"arms": len(study.arms), "charts": sections.charts(study.design.metric, seen)})

    def _judge(self, study: Study, folder: Path) -> None:
        self._unjudged = []
        try:
            self.state.put("verdict", sections.verdict(study))
            add_look(folder, "dashboard", len(study.design.seeds), study.complete)
        except UserError as error:
            self.state.put("verdict", {"headline": "", "families": []})
            self._unjudged = [f"no verdict: {error}"]

    def _tell(self, found: Found | None, rows: list[dict[str, Any]], study: Study | None) -> None:
        self.state.put("progress", sections.progress(found, study, self._reading))
        self.state.put("failures", sections.failures(found, study))
        self.state.put("workers", sections.workers(rows, study.labels if study else {}))
        for name, section in sections.OF_KIND.get(self.design.kind, {}).items() if found else ():
            self.state.put(name, section(found, self.design))

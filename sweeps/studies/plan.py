"""Plan and PlannedRun: the resolved runs of a study. Imports none of the planning code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.config.loading import build
from core.config.run import RunConfig, to_dict
from core.records.designs import Design, StudyDesign
from core.records.metrics import METRICS
from sweeps.studies.study import Level, study_name


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan: an arm under a seed. fingerprint: of the data that it is to be trained on. first: a first stage, of
    the same seed, that is trained inside the run's folder before it; first_fingerprint: of its data."""

    arm: str
    settings: Mapping[str, Level]
    config: RunConfig
    run_hash: str
    arm_hash: str
    fingerprint: str
    first: RunConfig | None = None
    first_fingerprint: str = ""

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def label(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """Plan of a study of any kind, as launchers, run folders, records and W&B know it. design: the declaration resolved."""

    name: str
    size: str
    design: StudyDesign
    runs: tuple[PlannedRun, ...]

    @property
    def study_name(self) -> str:
        return study_name(self.name, self.size)

    @property
    def kind(self) -> str:
        """The kind of study, by its name in sweeps.kinds."""
        return self.design.kind

    @property
    def configs(self) -> list[RunConfig]:
        """Configs whose devices a launcher asks for."""
        return [run.config for run in self.runs]

    @property
    def goal(self) -> str:
        """Better direction of the metric: "min" or "max"."""
        return METRICS[self.design.primary].goal

    @property
    def devices(self) -> int:
        """Processes that train one run together."""
        return self.design.devices

    def to_json(self) -> dict[str, Any]:
        """The plan as plain dictionaries, for another process."""
        raise NotImplementedError

    def study_field(self, run: PlannedRun) -> dict[str, Any]:
        """Reference from a run's record to its place in the design (the record's `study`)."""
        return {"ablation": self.name, "size": self.size, "arm": run.arm, "design": self.design.to_json()}


@dataclass(frozen=True)
class Plan(Sweep):
    """Everything that an ablation of one size is to train.

    design: records carry it, and reports need nothing else.
    runs: block by block (all arms of the first seed, then of the second), so that an interrupted sweep leaves whole
        blocks to compare.
    """

    design: Design

    def buy(self, cells: Iterable[tuple[str, int]], design: Design) -> "Plan":
        """The runs of the given cells alone, as (arm, seed), in the plan's order; the design says what is planned in all."""
        chosen = set(cells)
        return replace(self, design=design, runs=tuple(run for run in self.runs if (run.arm, run.seed) in chosen))

    def to_json(self) -> dict[str, Any]:
        """The plan as plain dictionaries, for `from_json` in another process."""
        of_arm: dict[str, dict[str, dict[str, Any] | None]] = {}  # written once for each arm: seeds may be a thousand
        rows = []
        for run in self.runs:
            if run.arm_hash not in of_arm:
                of_arm[run.arm_hash] = {
                    "config": to_dict(run.config),
                    "first": to_dict(run.first) if run.first else None,
                }
            configs = {key: config and config | {"seed": run.seed} for key, config in of_arm[run.arm_hash].items()}
            rows.append(vars(run) | {"settings": dict(run.settings)} | configs)
        return {"name": self.name, "size": self.size, "design": self.design.to_json(), "runs": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Plan":
        """The plan that `to_json` wrote."""
        of_arm: dict[str, dict[str, RunConfig]] = {}  # built once for each arm
        runs = []
        for row in content["runs"]:
            if row["arm_hash"] not in of_arm:
                of_arm[row["arm_hash"]] = {key: build(row[key]) for key in ("config", "first") if row.get(key)}
            seed = row["config"]["seed"]
            configs = {key: replace(config, seed=seed) for key, config in of_arm[row["arm_hash"]].items()}
            runs.append(PlannedRun(**row | configs))
        return cls(content["name"], content["size"], Design.from_json(content["design"]), tuple(runs))

"""A short run's measured time, as a correction of what computing takes on paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.capacity.clusters import Cluster, device_of_record
from core.capacity.layouts import Layout
from core.capacity.timing import step_time
from core.config.loading import build
from core.config.run import RunConfig
from core.errors import UserError
from core.records.run_record import RunRecord

FORWARD = 1 / 3  # of a training step, which a validation of as many sequences takes


@dataclass(frozen=True)
class Calibration:
    """scale: measured over predicted seconds of what is computed, on `device`; 1 = as predicted. measured_s: of a step."""

    scale: float
    device: str
    measured_s: float
    predicted_s: float

    def __str__(self) -> str:
        return (
            f"computing takes {self.scale:.2f} times as long as on paper: {self.measured_s:.4g} s a step measured on "
            f"{self.device}, {self.predicted_s:.4g} s predicted"
        )

    @classmethod
    def of_step(
        cls, config: RunConfig, seconds: float, cluster: Cluster, layout: Layout | None = None
    ) -> "Calibration":
        """Of a measured training step. layout: the config's own where none is given.

        What is sent and the optimizer's step count as predicted. Raises UserError where they alone take longer than was
        measured.
        """
        layout = layout or Layout.of(config, cluster.devices)
        predicted = step_time(config, layout, cluster)
        scale = (seconds - (predicted.total - predicted.computed)) / predicted.computed
        if scale <= 0:
            raise UserError(
                f"a step of {seconds:.3g} s was measured, and what is sent alone takes longer on paper on {cluster}: it "
                "was made on another machine, or its device isn't what it says"
            )
        return cls(scale, str(cluster), seconds, predicted.total)

    @classmethod
    def of_record(cls, record: RunRecord, cluster: Cluster | None = None) -> "Calibration":
        """Of a complete run's record; its validations are taken out. cluster: what it ran on (default: as it says).

        Raises UserError for a record without a measured time, or of a device that isn't known.
        """
        if record.status != "complete" or not record.tokens_per_second:
            raise UserError(f"a {record.status} run has no time to calibrate by: give the record of a complete one")
        config = build(record.config)
        return cls.of_step(config, seconds_of(record, config), cluster or _cluster_of(record.provenance))


def seconds_of(record: RunRecord, config: RunConfig) -> float:
    """Seconds of a training step, by the record's tokens per second, which count validation's time too."""
    trainer = config.trainer
    validations = -(-trainer.steps // (trainer.validate_every or trainer.steps))
    sequences = config.data.validation_sequences * config.data.sequence_length
    validated = FORWARD * validations * sequences / config.tokens_per_step
    return config.tokens_per_step / record.tokens_per_second * trainer.steps / (trainer.steps + validated)


def _cluster_of(provenance: Mapping[str, Any]) -> Cluster:
    described = str(provenance.get("device", "unknown"))
    device = device_of_record(described)
    if device is None:
        raise UserError(f"the record was made on '{described}', which is no known device: say which it is")
    count = int(provenance.get("devices", 1))
    return Cluster(count, device, min(8, count))

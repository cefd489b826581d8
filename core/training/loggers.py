"""RowLogger protocol: receives metric rows during training."""

from typing import Protocol


class RowLogger(Protocol):
    """Takes rows of metrics: of training every `trainer.log_every` steps, of every validation. Lightning's loggers do too."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """A row by the names in core.records.metrics, after `step` steps."""

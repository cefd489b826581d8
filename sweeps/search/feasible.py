"""Resolver: turns a point of a search's space into a config, or says why that can't be trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from core.config.loading import build
from core.config.presets import preset
from core.config.run import RunConfig, get_field, known_keys, to_dict
from core.errors import UserError
from core.model.flops import count
from sweeps.search.space import applies, ordered
from sweeps.search.spec import Search
from sweeps.studies.matching import match_flops
from sweeps.studies.study import Level

BYTES_PER_PARAMETER = 16  # fp32 weights, gradients, and AdamW's two moments


@dataclass(frozen=True)
class Resolved:
    """A config, or None with the reason. constraints: by name, above 0 where violated (Optuna's convention)."""

    config: RunConfig | None
    constraints: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


class Resolver:
    """Builds the configs of one search. Raises UserError when the control's can't be built."""

    def __init__(self, search: Search, overrides: Mapping[str, Any]) -> None:
        self._search = search
        self.base = build(to_dict(preset(search.base)), search.settings, overrides)
        self.control_settings = self._control()
        self.control = with_settings(self.base, self.control_settings)

    def resolve(self, settings: Mapping[str, Level]) -> Resolved:
        """The config of a point of the space."""
        experts = settings.get("model.num_experts", self.base.model.num_experts)
        top_k = settings.get("model.top_k", self.base.model.top_k)
        assert isinstance(experts, int) and isinstance(top_k, int)
        if experts and top_k > experts:
            return Resolved(
                None, {"top_k <= num_experts": float(top_k - experts)}, f"top-k {top_k} of {experts} experts"
            )
        try:
            config = with_settings(self.base, settings)
            if self._search.match == "active_flops":
                config = match_flops({"control": self.control, "configuration": config})[1]
        except UserError as error:
            return Resolved(None, {"config": 1.0}, str(error))
        limit = self._search.memory_gb
        if limit is not None:
            over = memory_gb(config) - limit
            if over > 0:
                return Resolved(
                    None, {"memory_gb": over}, f"an estimated {limit + over:.3g} GB, above memory_gb={limit:g}"
                )
        return Resolved(config)

    def _control(self) -> dict[str, Level]:
        """The control as a point of the space: what is declared, else what the base config has."""
        settings: dict[str, Level] = {}
        for key in ordered(self._search.space):
            if applies(self._search.space[key], settings):
                settings[key] = self._search.control.get(key, get_field(self.base, key))
        return settings


def with_settings(config: RunConfig, settings: Mapping[str, Level]) -> RunConfig:
    """The config with a point of a checked space set: as `build` makes it, in a hundredth of the time.

    Raises UserError for values that don't go together.
    """
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = changes
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = float(value) if known_keys()[key] is float else value  # type: ignore[arg-type]
    return _changed(config, changes)


def _changed(part: Any, changes: Mapping[str, Any]) -> Any:
    inner = {k: _changed(getattr(part, k), v) if isinstance(v, dict) else v for k, v in changes.items()}
    return replace(part, **inner)


def memory_gb(config: RunConfig) -> float:
    """An estimate from below: parameters, gradients and AdamW's moments in fp32; activations aren't counted."""
    return BYTES_PER_PARAMETER * count(config.model).total / 1e9

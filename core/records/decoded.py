"""Responses of a trained model under one decoding setting: a JSON file beside its run's record, whole or not at all."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from core.records.designs import DecodersDesign
from core.records.run_record import RunRecord, write_atomically
from core.runtime import json_files
from core.runtime.json_files import DamagedFileError, Number, Whole

FOLDER = "decoded"  # within the run's

Marks = Annotated[str, Meta(pattern=r"\A[01]*\Z")]


@dataclass(frozen=True)
class Decoded:
    """One model's answers to the same held-out prompts, or why there are none.

    decoder: its name; settings: of core.diffusion.sampling.Sampling. weights: sha256 of the model's. right: for each decode
    seed, a "1" or "0" for each prompt; calls: network calls of a response, mean; length: tokens of a response; seconds: of
    all of it, as it was decoded, whatever else the machine did.
    """

    decoder: str
    settings: dict[str, Any]
    task: str
    examples: Whole
    weights: str
    right: list[Marks] = field(default_factory=list)
    calls: Number = 0.0
    length: Whole = 0
    seconds: Number = 0.0
    reason: str | None = None

    def is_of(self, wanted: "Decoded") -> bool:
        """True if this is what another names: of the same model, prompts and settings; a failure too."""
        same = ("decoder", "settings", "task", "examples", "weights")
        return all(getattr(self, name) == getattr(wanted, name) for name in same)

    def trouble(self, length: int, decode_seeds: int) -> str | None:
        """Describe the first impossible number, or return None. length, decode_seeds: as the design has them."""
        if self.reason is not None:
            return None
        if len(self.right) not in (1, decode_seeds) or any(len(line) != self.examples for line in self.right):
            marks = ", ".join(str(len(line)) for line in self.right) or "none"
            return f"its marks ({marks}) aren't {self.examples} for each of 1 or {decode_seeds} decode seeds"
        if self.length != length:
            return f"its responses have {self.length} tokens, and the design's {length}"
        return None if self.calls > 0 else f"{self.calls:g} network calls can't give a response"


def expected(design: DecodersDesign, record: RunRecord) -> list[Decoded]:
    """The responses that a design's decoders ask of a finished run's model, still empty."""
    weights = record.provenance.get("weights_sha256") or ""
    # A causal model is decoded token after token, which no way changes: its answers stand in for the control's.
    ways = design.ways[:1] if record.config.get("model", {}).get("causal") else design.ways
    return [Decoded(way.name, dict(way.settings), design.task, design.examples, weights) for way in ways]


def responses(design: DecodersDesign, record: RunRecord, run: Path) -> list[tuple[Decoded, Decoded | None]]:
    """Each response asked of a finished run, with the one in its folder; None where there is none of that model, prompts
    and settings."""
    found, _ = read_all(run)
    pairs = ((wanted, found.get(wanted.decoder)) for wanted in expected(design, record))
    return [(wanted, one if one is not None and one.is_of(wanted) else None) for wanted, one in pairs]


def write(decoded: Decoded, run: Path) -> Path:
    """Write it into its run's folder, atomically."""
    path = run / FOLDER / f"{decoded.decoder}.json"
    write_atomically(path, json.dumps(asdict(decoded), allow_nan=False, separators=(",", ":")) + "\n")
    return path


def read_all(run: Path) -> tuple[dict[str, Decoded], dict[str, str]]:
    """What lies in a run's folder by the decoder's name; and why what can't be read, and is decoded again, can't, by file."""
    found, broken = {}, {}
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            content = json_files.read(path)
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            broken[path.name] = str(error)
            continue
        names = {entry.name for entry in fields(Decoded)}
        if not isinstance(content, dict) or set(content) != names or not json_files.fits(content, Decoded):
            broken[path.name] = "not a model's answers"
        elif content["decoder"] != path.stem:
            broken[path.name] = f"the answers of {content['decoder']}"
        else:
            found[path.stem] = Decoded(**content)
    return found, broken

"""`ablate probe routing`: does expert choice depend on the timestep, and does it matter to the loss?"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablations.cli import studies
from ablations.cli.probe_lengths import run_lengths
from ablations.cli.probe_tables import print_run, print_study
from ablations.cli.recorded import load_study
from ablations.cli.terminal import console, show_json
from analysis.routing.profile import SEQUENCES, RoutingProfile, crossed_profile, paired_change, plain_profile
from core.config.loading import parse_overrides
from core.config.run import RunConfig, config_hash
from core.data.corpora import fingerprint
from core.data.corpora import load as load_corpus
from core.data.held_out import check_held_out
from core.errors import UserError
from core.probes.checks import check_probe
from core.records.run_record import write_atomically
from core.runtime import json_files
from core.runtime.json_files import DamagedFileError
from core.runtime.paths import file_sha256
from core.runtime.random_streams import numpy_stream
from core.training.checkpoint_files import WEIGHTS
from core.training.checks import check_vocabulary, find_run

if TYPE_CHECKING:
    from core.probes.routing import ProbedRouting

FILE_NAME = "probe.json"
SCHEMA = 1
DIGITS = 5  # of shares, as in a record


def run_probe(arguments: argparse.Namespace) -> int:
    """Probe one run, or every recorded run of an ablation; leave probe.json beside each run's record."""
    if arguments.kind == "lengths":
        if arguments.settings:
            raise UserError(f"ablate probe lengths takes no setting '{arguments.settings[0]}'")
        return run_lengths(arguments)
    if arguments.lengths:
        raise UserError("--lengths is an option of ablate probe lengths")
    settings = parse_overrides(arguments.settings)
    other = [key for key in settings if not key.startswith("data.")]
    if other:
        raise UserError(
            f"{other[0]}: a probe sees a run as it was trained; only data.* may be set, to probe it on other data"
        )
    _check_numbers(arguments.sequences, arguments.timesteps)
    folder = Path(arguments.name)
    out = console()
    if (folder / "config.yaml").is_file():
        content = probe_run(folder, arguments.sequences, arguments.timesteps, settings)
        show_json(content) if arguments.json else print_run(content, folder / FILE_NAME, out)
        return 0
    if folder.is_dir() and arguments.name not in studies.discover():
        raise UserError(
            f"{folder} has no config.yaml: name the folder of a run, or import the model first: ablate import hf {folder}"
        )
    rows = list(_arms(arguments, settings))
    if not any(row["runs"] for row in rows):
        raise UserError(f"no run of {arguments.name} could be probed: {rows[0]['notes'][0]}")
    show_json(rows) if arguments.json else print_study(rows, out)
    return 0


def probe_run(folder: Path, sequences: int, timesteps: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Probe of a run's folder; from its probe.json where that has the same already.

    Raises UserError for a folder without weights, a model without routing by timestep, and data that doesn't fit it.
    """
    config = find_run(folder, settings)
    check_probe(config, timesteps)
    check_vocabulary(config, load_corpus(config.data))
    check_held_out(config, sequences)
    basis = {"schema": SCHEMA, "run_hash": config_hash(config), "seed": config.seed, "sequences": sequences}
    basis |= {"timesteps": timesteps, "data": config.data.corpus, "data_fingerprint": fingerprint(config.data)}
    basis["weights_sha256"] = file_sha256(folder / WEIGHTS)
    known = _known(folder / FILE_NAME)
    if known is not None and all(known.get(key) == value for key, value in basis.items()):
        return known
    from core.data.module import held_out  # torch, which mistakes are refused without
    from core.probes.routing import probe_routing
    from core.training.weights import open_run

    _, denoiser = open_run(folder, settings)
    tokens_GL, maskable_GL = held_out(config, sequences)
    probed = probe_routing(config, denoiser, tokens_GL, maskable_GL, timesteps=timesteps)
    layers = [i for i, layer in enumerate(denoiser.layers) if layer.moe is not None]
    content = basis | describe(config, layers, probed)
    write_atomically(folder / FILE_NAME, json.dumps(content, allow_nan=False) + "\n")
    return content


def describe(config: RunConfig, layers: list[int], probed: "ProbedRouting") -> dict[str, Any]:
    """Probe results, ready for JSON. layers: the sparse ones.

    "crossed", "plain": a row for each sparse layer. "nelbo": nats per token. "swapped", "told": how it changes when tokens
    are routed as half the timesteps away, and when routers are told the timestep half of them away (None for routers that
    are told none). "expert_share": [S][T][visible, masked][E], of the crossed design's tokens; 0 where there was none.
    """
    sequences, timesteps = probed.nelbo_GT.shape
    bin_G = numpy_stream(config.seed, "probe bins").permutation(sequences) % timesteps
    plain_SGMK = probed.all_SGTME[:, np.arange(sequences), bin_G]
    statistics = [numpy_stream(config.seed, "probe statistics", design) for design in ("crossed", "plain")]
    counts_STME = probed.fixed_SGTME.sum(1)
    share_STME = counts_STME / np.maximum(counts_STME.sum(-1, keepdims=True), 1)
    told = None if probed.told_GT is None else vars(paired_change(probed.nelbo_GT, probed.told_GT))
    return {
        "router": {"kind": config.model.router.kind, "sees": config.model.router.sees},
        "experts": config.model.experts,
        "timestep": probed.timestep_T.round(DIGITS).tolist(),
        "crossed": _rows(layers, crossed_profile(probed.fixed_SGTME, rng=statistics[0])),
        "plain": _rows(layers, plain_profile(plain_SGMK, bin_G, rng=statistics[1])),
        "nelbo": float(probed.nelbo_GT.mean()),
        "swapped": vars(paired_change(probed.nelbo_GT, probed.swapped_GT)),
        "told": told,
        "expert_share": share_STME.round(DIGITS).tolist(),
    }


def _check_numbers(sequences: int, timesteps: int) -> None:
    if sequences < SEQUENCES:
        raise UserError(f"--sequences {sequences} are too few to tell: at least {SEQUENCES} are needed")
    if not 2 <= timesteps <= sequences // 2:
        raise UserError(
            f"--timesteps {timesteps} must lie in 2..{sequences // 2}: each needs 2 of the {sequences} sequences for itself"
        )


def _rows(layers: list[int], profile: RoutingProfile) -> list[dict[str, Any]]:
    rows = []
    for place, layer in enumerate(layers):
        row: dict[str, Any] = {"layer": layer}
        row |= {name.removesuffix("_S"): value[place] for name, value in vars(profile).items() if name.endswith("_S")}
        for status, name in enumerate(("visible", "masked")):
            row[f"divergence_{name}"] = profile.divergence_SM[place, status]
            row[f"divergence_{name}_error"] = profile.divergence_error_SM[place, status]
        rows.append({key: value if isinstance(value, int) else _finite(value) for key, value in row.items()})
    return rows


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _known(path: Path) -> dict[str, Any] | None:
    """A probe that lies there already; None where there is none, or it can't be read."""
    try:
        content = json_files.read(path)
    except (FileNotFoundError, DamagedFileError):
        return None
    return content if isinstance(content, dict) else None


def _arms(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each arm: its probed runs, and what kept others from being probed."""
    study, home = load_study(arguments)
    for arm in study.arms:
        row: dict[str, Any] = {"arm": arm, "label": study.labels[arm], "runs": [], "notes": []}
        for record in study.records_of(arm):
            if record.status != "complete":
                continue
            folder = next((home / arm).glob(f"seed-{record.seed}-{record.run_hash}-*"), None)
            if folder is None:
                row["notes"].append(f"seed {record.seed}: its folder isn't where it was recorded; probe it by its path")
                continue
            try:
                row["runs"].append(probe_run(folder, arguments.sequences, arguments.timesteps, settings))
            except UserError as error:
                row["notes"].append(f"seed {record.seed}: {error}")
        if not row["runs"] and not row["notes"]:
            row["notes"].append("no complete run")
        yield row

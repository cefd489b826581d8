"""`ablate probe routing`: does expert choice depend on the timestep, and does it matter to the loss?"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablations.cli import studies
from ablations.cli.probe_lengths import run_lengths
from ablations.cli.recorded import load_study
from ablations.cli.terminal import show
from analysis.formatting import coverage, pvalue
from analysis.routing.profile import SEQUENCES, RoutingProfile, crossed_profile, paired_change, plain_profile
from core.config.loading import parse_overrides
from core.config.run import RunConfig, config_hash
from core.data.corpora import check_held_out
from core.data.corpora import load as load_corpus
from core.errors import UserError
from core.probes.checks import check_probe
from core.records.run_record import write_atomically
from core.runtime import json_files
from core.runtime.json_files import DamagedFileError
from core.runtime.paths import file_sha256
from core.runtime.random_streams import numpy_stream
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled
from core.training.checkpoint_files import WEIGHTS
from core.training.checks import check_vocabulary, find_run

if TYPE_CHECKING:
    from core.probes.routing import ProbedRouting  # loads torch

FILE_NAME = "probe.json"
SCHEMA = 1
DIGITS = 5  # of shares, as in a record
ALPHA = 0.05


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
    if (folder / "config.yaml").is_file():
        content = probe_run(folder, arguments.sequences, arguments.timesteps, settings)
        return show(content, arguments, partial(_print_run, path=folder / FILE_NAME))
    if folder.is_dir() and arguments.name not in studies.discover():
        raise UserError(
            f"{folder} has no config.yaml: name the folder of a run, or import the model first: ablate import hf {folder}"
        )
    rows = list(_arms(arguments, settings))
    if not any(row["runs"] for row in rows):
        raise UserError(f"no run of {arguments.name} could be probed: {rows[0]['notes'][0]}")
    return show(rows, arguments, _print_study)


def probe_run(folder: Path, sequences: int, timesteps: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Probe of a run's folder; from its probe.json where that has the same already.

    Raises UserError for a folder without weights, a model without routing by timestep, and data that doesn't fit it.
    """
    config = find_run(folder, settings)
    check_probe(config, timesteps)
    corpus = load_corpus(config.data)
    check_vocabulary(config, corpus)
    check_held_out(config, sequences)
    basis = {"schema": SCHEMA, "run_hash": config_hash(config), "seed": config.seed, "sequences": sequences}
    basis |= {"timesteps": timesteps, "data": config.data.corpus, "data_fingerprint": corpus.fingerprint}
    basis["weights_sha256"] = file_sha256(folder / WEIGHTS)
    known = _known(folder / FILE_NAME)
    if known is not None and all(known.get(key) == value for key, value in basis.items()):
        return known
    from core.data.module import held_out  # torch, which mistakes are refused without
    from core.probes.routing import probe_routing  # loads torch
    from core.training.weights import open_run  # loads torch

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


def _print_run(content: dict[str, Any], out: Terminal, path: Path) -> None:
    """A row for each layer in both designs, then what other routing does to the NELBO."""
    out.unwrapped(
        f"{_router(content)}, seed {content['seed']}: {content['sequences']} held-out sequences of {content['data']}, "
        f"{content['timesteps']} timesteps, {content['nelbo']:.4f} nats per token"
    )
    names = (
        "design",
        "I(E;T|M), nats",
        f"simultaneous {coverage(ALPHA)}".removesuffix(" interval"),
        "% of H(E|M)",
        "JSD visible",
        "JSD masked",
        "p adj.",
    )
    table = labelled("layer", *names, left=("design",))
    for crossed, plain in zip(content["crossed"], content["plain"], strict=True):
        for design, row in (("crossed", crossed), ("plain", plain)):
            table.add(
                str(row["layer"]) if design == "crossed" else "",
                design,
                f"{row['nats']:.4f} ± {row['error']:.4f}",
                f"{row['low']:.4f} to {row['high']:.4f}",
                "–" if row["share"] is None else f"{100 * row['share']:.2f}",
                _number(row["divergence_visible"]),
                _number(row["divergence_masked"]),
                pvalue(row["adjusted"], ALPHA),
            )
    out.print(table)
    out.unwrapped(
        "crossed: the same tokens at every timestep, their masked status the same; plain: each sequence at one timestep"
    )
    out.unwrapped(f"routed as half the timesteps away: {_change(content['swapped'])}")
    if content["told"] is not None:
        out.unwrapped(f"told the timestep half of them away: {_change(content['told'])}")
    out.unwrapped(f"probe: {path}")


def _print_study(rows: Sequence[dict[str, Any]], out: Terminal) -> None:
    """A row for each arm: means over layers and seeds, and standard errors over seeds."""
    table = labelled("arm", "runs", "crossed", "% of H", "depend", "plain", "swapped", "told")
    for row in rows:
        runs = row["runs"]
        table.add(
            row["label"],
            str(len(runs)),
            _over_runs(_layer_mean(runs, "crossed", "nats"), ".3f"),
            _over_runs(100 * _layer_mean(runs, "crossed", "share"), ".1f"),
            _depend(runs),
            _over_runs(_layer_mean(runs, "plain", "nats"), ".3f"),
            _over_runs(np.array([run["swapped"]["mean"] for run in runs]), "+.4f"),
            _over_runs(np.array([run["told"]["mean"] for run in runs if run["told"] is not None]), "+.4f"),
        )
    out.print(table)
    out.unwrapped(
        "means over layers and runs, ± standard error over runs. crossed, plain: I(E;T|M) in nats, of two designs; % of H: "
        f"crossed as a share of H(E|M); depend: runs with a layer of adjusted p < {ALPHA} (crossed); swapped, told: change "
        "of the NELBO, nats per token, when tokens are routed as half the timesteps away, and when routers are told the "
        "timestep half of them away"
    )
    for row in rows:
        for note in row["notes"]:
            out.unwrapped(f"{row['label']}: {note}")


def _router(content: dict[str, Any]) -> str:
    kind, sees = content["router"]["kind"], content["router"]["sees"]
    return kind if sees == "timestep" else f"{kind} (sees {sees})"


def _layer_mean(runs: Sequence[dict[str, Any]], design: str, name: str) -> np.ndarray:
    """Each run's mean over the layers that have a value."""
    means = [[row[name] for row in run[design] if row[name] is not None] for run in runs]
    return np.array([np.mean(values) for values in means if values])


def _depend(runs: Sequence[dict[str, Any]]) -> str:
    found = sum(min(row["adjusted"] for row in run["crossed"]) < ALPHA for run in runs)
    return f"{found} of {len(runs)}" if runs else "–"


def _over_runs(values: np.ndarray, form: str) -> str:
    if not len(values):
        return "–"
    if len(values) < 2:
        return f"{values[0]:{form}}"
    error = f"{values.std(ddof=1) / len(values) ** 0.5:{form.lstrip('+')}}"
    return f"{values.mean():{form}} ±{error.removeprefix('0')}"


def _change(change: dict[str, Any]) -> str:
    low, high = (f"{change[name]:+.4f}" for name in ("low", "high"))
    return f"NELBO {change['mean']:+.4f} ± {change['standard_error']:.4f} nats per token (95 %: {low} to {high})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

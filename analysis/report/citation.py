"""What a paper says of a study: its methods in a sentence, and whose statistics they are."""

from collections.abc import Mapping
from importlib import metadata

from analysis.formatting import coverage
from analysis.study import Study
from analysis.verdicts.judge import Judgement
from core.records.metrics import METRICS

PACKAGE = "moe-diffusion-ablations"


def version() -> str:
    """The version of the software that writes the report."""
    return metadata.version(PACKAGE)


def methods(study: Study, judgement: Judgement) -> str:
    """How a study of arms was compared, in a sentence that holds for its records as they are; empty for a ladder's."""
    design = study.design
    if judgement.ladder or not any(row.effect for row in judgement.tables[0].rows):
        return ""
    table = judgement.tables[0]
    pairs = sorted({row.effect.n for row in table.rows if row.effect})
    many = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    compared = sum(row.effect is not None for row in table.rows)
    arms = "an arm" if compared == 1 else f"each of {compared} arms"
    kept = "any-time valid intervals" if judgement.course else "t intervals of the mean paired difference"
    told = (
        f"We compared {arms} with the control “{study.labels[design['control']]}” in {METRICS[design['metric']].label}"
    )
    told += f" over {many} seeds under common random numbers (data order, masks, timesteps, initial weights), by "
    told += f"{coverage(design['alpha']).replace('interval', kept)}"
    told += f", adjusting p-values by Holm's method at a family-wise level of {design['alpha']:g}"
    if design["margin"]:
        told += f"; equivalence was tested by two one-sided tests with a margin of {design['margin']:g} {table.unit}".rstrip()
    lost = judgement.counts["failed"]
    return told + (
        f"; {lost} run{'s' if lost > 1 else ''} failed and {'are' if lost > 1 else 'is'} left out." if lost else "."
    )


def sources(judgement: Judgement) -> list[str]:
    """The statistics that a report rests on, with their sources."""
    if judgement.ladder:
        return ["the law of scale and its fit (Hoffmann et al. 2022, arXiv 2203.15556)"]
    found = ["adjusted p-values (Holm 1979)"]
    found += ["equivalence by two one-sided tests (Schuirmann 1987)"] if judgement.tables[0].margin else []
    if judgement.decoding:
        found += [
            "prompts and models as crossed clusters (Cameron, Gelbach and Miller 2011)",
            "McNemar's test of clustered pairs (Durkalski et al. 2003)", "Cochran's Q (1950)",
        ]  # fmt: skip
    found += ["any-time valid intervals, see docs/ablations.md"] if judgement.course else []
    return found


def origin(provenance: Mapping[str, list[str]]) -> str:
    """Commit and data in a line, as a bibliography's note has them."""
    facts = [("commit", "git_commit"), ("data", "data fingerprint")]
    parts = [f"{word} {', '.join(provenance[key])}" for word, key in facts if provenance.get(key)]
    return "; ".join(parts).translate(str.maketrans("", "", "{}\\"))

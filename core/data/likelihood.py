"""Kind of likelihood that a config's validation NELBO is."""

from core.config.run import RunConfig
from core.data.corpus import CORPORA
from core.data.names import kinds
from core.records.designs import Likelihood


def likelihood(config: RunConfig) -> Likelihood:
    """The kind by objective, corpus and tokenizer. Raises UserError for an unknown kind of corpus."""
    responses = any(
        CORPORA[kind].responses for kind in kinds(config.data.corpus)
    )  # of all parts of a mixture, or of none
    return Likelihood(
        config.objective.traits.likelihood, "responses" if responses else "sequences", config.data.tokenizer
    )

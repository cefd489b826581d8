"""A run on paper: a step in shapes alone, its schedule, its data and its layout, in seconds and without its memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.config.run import RunConfig, learning_rate_factor
from core.data.corpora import load as load_corpus
from core.data.corpus import Corpus
from core.errors import UserError
from core.model.flops import ModelSize, count, training_flops
from core.runtime.units import short
from core.training.checks import check

SPARE_ROWS = 1024  # of a vocabulary, beyond what its tokens use: padding and reserved tokens


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run.

    shapes: of the hidden states, the logits of a sequence, and the routing of a layer (none for a dense model), for one
    device's micro-batch. learning_rates: (step, rate) through the schedule. tokens: seen in training; epochs: how often
    the corpus is gone through, whose training tokens are corpus_tokens.
    """

    size: ModelSize
    micro_batch: int
    shapes: dict[str, tuple[int, ...]]
    learning_rates: Sequence[tuple[int, float]]
    tokens: float
    corpus_tokens: int
    fingerprint: str
    flops: float
    epochs: float


def dry_run(config: RunConfig, devices: int = 1) -> DryRun:
    """Check everything of a run that can be checked without training it, wherever it is to be trained.

    Raises UserError as `core.training.checks.check` does, but for what this machine lacks; and for data that can't feed the
    model. A step's forward pass is computed on the meta device, on which tensors have shapes and no content.
    """
    check(config, devices, here=False)
    corpus = load_corpus(config.data)
    check_fed(config, corpus)
    trainer = config.trainer
    micro = trainer.batch_size // (devices * trainer.accumulate)
    return DryRun(
        size=count(config.model),
        micro_batch=micro,
        shapes=shapes_of(config, micro),
        learning_rates=schedule_of(config),
        tokens=config.tokens_per_step * trainer.steps,
        corpus_tokens=len(corpus.train_T),
        fingerprint=corpus.fingerprint,
        flops=training_flops(config),
        epochs=passes(config, corpus),
    )


def passes(config: RunConfig, corpus: Corpus) -> float:
    """Number of passes of training over the corpus."""
    draws = config.objective.draws if config.objective.traits.pairs else 1  # masks of the same pair, in one step
    return config.tokens_per_step * config.trainer.steps / draws / len(corpus.train_T)


def check_fed(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a corpus that would leave most of the vocabulary's rows untrained, or would be gone through too often."""
    data, rows, ids = config.data, config.model.vocab_size, corpus.vocabulary.size
    if rows > 2 * ids and rows - ids > SPARE_ROWS:
        raise UserError(
            f"data.corpus={data.corpus} with data.tokenizer={data.tokenizer} has {ids:,} token ids, and the model rows for "
            f"{rows:,} (model.vocab_size), most of which would never be trained: name the model's own tokenizer "
            "(data.tokenizer=PATH), or token shards that it made (data.corpus=tokens:PATH)"
        )
    often, most = passes(config, corpus), config.objective.traits.most_passes
    if often > most:
        tokens, wanted = config.tokens_per_step * config.trainer.steps, len(corpus.train_T) * often / most
        raise UserError(
            f"data.corpus={data.corpus} has {short(len(corpus.train_T))} tokens to learn from, and {short(tokens)} are to be "
            f"seen: each {short(often)} times, where more than {most} teach nothing more: use a corpus of "
            f"{short(wanted)} tokens or more, or fewer trainer.steps"
        )


def shapes_of(config: RunConfig, batch: int) -> dict[str, tuple[int, ...]]:
    """The shapes that a forward pass of `batch` sequences goes through, layer by layer, computed without their content.

    In bf16, which is the only type whose grouped matmul has shapes without content; none for widths that it can't have.
    """
    import torch  # seconds, which a run that is refused before needn't spend

    from core.model.transformer import Denoiser  # torch, as above

    model = config.model
    if model.num_experts and (model.hidden_size % 8 or model.width_of_expert % 8 or model.shared_expert_width % 8):
        return {}
    with torch.device("meta"), torch.no_grad():
        denoiser = Denoiser(model).bfloat16()
        tokens_BL = torch.zeros(batch, config.data.sequence_length, dtype=torch.long)
        timestep_B = torch.ones(batch)
        hidden = denoiser.hidden(tokens_BL, timestep_B, timestep_B)
        logits_LV = denoiser.logits(hidden.states_BLD[0])
    shapes = {"hidden states": tuple(hidden.states_BLD.shape), "logits of a sequence": tuple(logits_LV.shape)}
    if hidden.routings:
        routing = hidden.routings[0].routing
        shapes["router probabilities"] = tuple(routing.probs_NE.shape)
        shapes["chosen experts"] = tuple(routing.experts_NK.shape)
    return shapes


def schedule_of(config: RunConfig) -> list[tuple[int, float]]:
    """The learning rate at the first step, the end of the warm-up, the quarters of the run and its last step."""
    steps, peak = config.trainer.steps, config.optimizer.learning_rate
    places = {0, config.optimizer.warmup_steps, *(math.ceil(steps * part / 4) for part in (1, 2, 3)), steps - 1}
    return [(step, peak * learning_rate_factor(config, step)) for step in sorted(places) if step < steps]

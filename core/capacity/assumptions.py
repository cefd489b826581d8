"""Assumptions of the memory and time model, each by name and with its reason."""

from dataclasses import dataclass

from core.errors import require


@dataclass(frozen=True)
class Assumptions:
    """Shares are of 1; an efficiency is what is reached of a data sheet's number.

    imbalance: rows that the fullest device gets for its experts over the mean, under expert parallelism. With the
    load-balancing loss the fullest expert has about twice the mean (MaxVio 1); a device that holds several sees less of it.
    Its worst case is expert_parallel itself: every token chooses the experts of one device. masked_share: of the tokens whose
    logits a device computes at a time, for memory; 1 is the worst case (t near 1 in every sequence).
    """

    headroom: float = 0.08  # of a device's memory left free: fragmentation, which measured peaks don't have
    imbalance: float = 1.5
    masked_share: float = 1.0
    # docs/speed.md, H200, bf16, the released layer: MFU 24 % and 3.04 times the same FLOPs as large matmuls.
    matmul: float = 0.73
    # Such that the whole layer, with what it moves through memory, takes what was measured there.
    grouped_matmul: float = 0.36
    attention: float = (
        0.45  # FlashAttention-2 forward and backward, head size 128 (arXiv 2307.08691, Fig. 4: A100, H100)
    )
    fp32_matmul: float = 0.7
    memory: float = 0.8  # of the memory's bandwidth, in elementwise passes
    link: float = 0.75  # of NVLink or the network, in reductions and gathers of large buckets
    all_to_all: float = 0.5  # of either, in exchanges of uneven parts
    latency: float = 25e-6  # seconds, of a collective within a node; each doubling of nodes adds as much
    launch: float = 10e-6  # seconds in which Python and the driver start one kernel: they bound small models
    overlap: float = (
        0.5  # of ZeRO-3's reductions and gathers, hidden behind computation (overlap_comm); earlier stages: 0
    )

    def __post_init__(self) -> None:
        require(0 <= self.headroom < 1, f"headroom must lie in [0, 1), not {self.headroom}")
        require(self.imbalance >= 1, f"imbalance must be at least 1, not {self.imbalance}")
        require(0 < self.masked_share <= 1, f"masked_share must lie in (0, 1], not {self.masked_share}")


DEFAULT = Assumptions()

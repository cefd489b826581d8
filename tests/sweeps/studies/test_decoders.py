import pytest

from core.config.loading import build
from core.errors import UserError
from sweeps.studies.decoders import Decoders
from sweeps.studies.factors import Factor

WAYS = Decoders(factors=(Factor("block_length", (4, "full")),), control={"block_length": "full"}, examples=8)
TASK = {"data.corpus": "task:copy", "data.sequence_length": 24, "objective.kind": "sft"}


def test_a_network_with_blocks_is_decoded_in_its_own_alone() -> None:
    plain, blocks = build(TASK), build(TASK, {"model.block_length": 4})
    assert len(WAYS.describe({"plain": plain}).ways) == 2
    with pytest.raises(UserError, match=r"the arm blocks is decoded in its own blocks \(model.block_length=4\)"):
        WAYS.describe({"plain": plain, "blocks": blocks})
    rules = Decoders(factors=(Factor("remasking", ("random", "entropy")),), control={"remasking": "random"}, examples=8)
    assert len(rules.describe({"plain": plain, "blocks": blocks}).ways) == 2

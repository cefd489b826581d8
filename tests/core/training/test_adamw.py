import torch

from core.training.module import AdamW


def fit(kind: type[torch.optim.AdamW], steps: int, state: dict | None = None) -> tuple[torch.nn.Module, dict]:
    """A network after so many steps of an optimizer that may go on from a state, and its state."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 3))
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in network.parameters()]
    optimizer = kind(groups, lr=0.01, betas=(0.9, 0.95), fused=True)
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        network(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network, optimizer.state_dict()


def test_it_takes_the_very_steps_of_torchs_and_goes_on_from_its_state() -> None:
    reference, state = fit(torch.optim.AdamW, 6)
    ours, own = fit(AdamW, 6)
    for one, other in zip(reference.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other) and other.grad is None and other.requires_grad
    assert own["param_groups"] == state["param_groups"]
    further, _ = fit(AdamW, 3, state)
    expected, _ = fit(torch.optim.AdamW, 3, own)
    for one, other in zip(expected.parameters(), further.parameters(), strict=True):
        assert torch.equal(one, other)

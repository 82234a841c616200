"""One step of an optimiser: down, clipped, or not at all."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from calibrate.pretrain.descent import descend  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def adam(network):
    return torch.optim.AdamW(network.parameters(), lr=0.1)


def test_a_step_is_that_of_the_optimiser_on_the_clipped_gradient(network):
    same, images = copy.deepcopy(network), torch.randn(8, 4)
    ours, theirs = adam(network), adam(same)
    for _ in range(3):
        assert descend(ours, network, 100 * network(images).square().mean(), clip=0.5)
        theirs.zero_grad()
        (100 * same(images).square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(same.parameters(), 0.5)
        theirs.step()
    assert all(map(torch.equal, network.parameters(), same.parameters()))
    assert torch.cat([each.grad.flatten() for each in network.parameters()]).norm() <= 0.5 + 1e-6


@pytest.mark.parametrize("loss", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing(network, loss):
    before, optimiser = copy.deepcopy(network), adam(network)
    found = network(torch.ones(1, 4)).sum()
    found = found * torch.nan if loss == "loss" else (found - found.detach()).abs().sqrt()  # 0, and steep
    assert not descend(optimiser, network, found, clip=5.0)
    assert all(map(torch.equal, network.parameters(), before.parameters()))
    assert not optimiser.state

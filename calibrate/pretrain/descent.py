"""One step of an optimiser, which a loss that is not finite never takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def descend(optimiser: torch.optim.Optimizer, network: nn.Module, loss: Tensor, clip: float) -> bool:
    """Step down the loss; its gradient's norm over all of the network is at most clip.

    False, and no weight has changed, where the loss or that norm is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
    if not torch.isfinite(loss + norm):
        return False
    optimiser.step()
    return True

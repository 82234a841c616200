"""What the backbone is trained for: a defect's patches lie far from a part's good ones, and good ones near.

The distance is PatchCore's (Roth et al. 2022): to the nearest patch of other good frames of the same part.
Training the features through it is metric learning by episodes (Vinyals et al. 2016, "Matching Networks").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRUCK, CLEAN = 0.25, 0.02  # share of a cell's pixels that are defective: above it is, below it is not


class Distances(nn.Module):
    """Distances as logits; scale and offset are learned and shared by all parts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.offset = nn.Parameter(torch.tensor(3.0))

    def forward(self, distance: Tensor) -> Tensor:
        out: Tensor = self.scale.exp() * distance - self.offset
        return out


def nearest(queries: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every query patch to the nearest support patch of its part, and what separates them.

    queries (g, q, d, rows, columns), support (g, s, d, rows, columns); distances (g, q, rows, columns),
    residuals (g, q, d, rows, columns).
    """
    g, q, d, rows, columns = queries.shape
    x = queries.permute(0, 1, 3, 4, 2).reshape(g, -1, d).float()
    y = support.permute(0, 1, 3, 4, 2).reshape(g, -1, d).float()
    with torch.no_grad():
        index = torch.cdist(x, y).argmin(2)
    residual = x - torch.gather(y, 1, index[..., None].expand(-1, -1, d))
    distance = (residual.square().sum(2) + 1e-6).sqrt()
    maps = residual.reshape(g, q, rows, columns, d).permute(0, 1, 4, 2, 3)
    return distance.reshape(g, q, rows, columns), maps


def cells(mask: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cells that are defective, and cells that are not; those between count for neither.

    mask bool (n, 1, height, width); both results bool (n, rows, columns).
    """
    share = functional.adaptive_avg_pool2d(mask.float(), (rows, columns))
    near = functional.max_pool2d(share, 3, 1, 1)
    largest = share.amax((2, 3), keepdim=True)
    struck = (share > STRUCK) | ((share == largest) & (share > CLEAN))
    return struck[:, 0], (near < CLEAN)[:, 0]


def balanced(logits: Tensor, struck: Tensor, clean: Tensor) -> Tensor:
    """Cross-entropy with equal weight for defective and good cells."""
    return (_mean(functional.softplus(-logits), struck) + _mean(functional.softplus(logits), clean)) / 2


def ranked(logits: Tensor, struck: Tensor, clean: Tensor) -> Tensor:
    """A frame's worst defective cell above the worst good cells of all frames of its part.

    All of shape (g, q, rows, columns). This is what the image's score, a maximum, asks for.
    """
    floor = torch.finfo(logits.dtype).min
    good = logits.masked_fill(~clean, floor).flatten(1).topk(8, 1).values.mean(1, keepdim=True)
    worst = logits.masked_fill(~struck, floor).flatten(2).topk(2, 2).values[..., 0]
    has = struck.flatten(2).any(2) & (good > floor / 16)
    return _mean(functional.softplus(good - worst), has)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)

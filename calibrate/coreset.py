"""The greedy k-center coreset: few points that leave none far from all of them, in bounded memory.

Minimax facility location as in Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection",
algorithm 1 (greedy: Gonzalez 1985, at most twice the best radius). The next member is always the point
farthest from all members so far; what is kept of the distances is one number a point and group, never a
matrix over all points.

One point after the other would read all points once a member. Here a pool of the farthest points is looked
at by itself: as long as one of them is farther than every point outside was, it is the farthest of all,
because distances only shrink. So a round gives hundreds of members, exactly those of the plain algorithm,
and all points meet them in one matrix product.
"""

from __future__ import annotations

import numpy as np

from calibrate.folds import Indices
from inspectord.inspect import Floats

POOL = 2048  # measured over 1024 to 8192, 330,000 points of 100 dimensions: 2048 and 4096 are fastest
MEMBERS_AT_ONCE, POINTS_AT_ONCE = 512, 4096  # 8 MB of distances
ALIKE = 1e-6  # of the largest squared norm: float32 can't tell closer points apart


def room(points: int, dimensions: int) -> Floats:
    """An array for Cover: points go to its first `dimensions` columns, Cover fills the two others."""
    return np.empty((points, dimensions + 2), np.float32)


def lower(lifted: Floats) -> Floats:
    """The other half of lifted points: squared distances of b to x are lower(b) @ x.T, one matrix product."""
    ones = np.ones((len(lifted), 1), np.float32)
    return np.hstack([-2 * lifted[:, :-2], lifted[:, -1:], ones])


def lift(points: Floats) -> None:
    """Fill the last two columns of points (n, d + 2), in place, with 1 and the squared norm."""
    inner = points[:, :-2]
    points[:, -2] = 1
    np.einsum("ij,ij->i", inner, inner, out=points[:, -1])


class Cover:
    """Points and how far each is from the nearest member chosen so far, of each group of points apart.

    points is of room(n, d) and is centred in place, so that squared distances lose few digits to
    cancellation; group (n,) numbers the points' groups from 0.
    """

    def __init__(self, points: Floats, group: Indices) -> None:
        inner = points[:, :-2]
        inner -= inner.mean(axis=0, dtype=np.float64).astype(np.float32)
        lift(points)
        self.points, self.group = points, group
        self.members: list[int] = []
        groups = int(group.max()) + 1
        # Squared, (groups, n): to the members of each group.
        self.nearest = np.full((groups, len(points)), np.inf, np.float32)
        self._alike = ALIKE * float(points[:, -1].max())

    def join(self, members: Indices) -> None:
        """Make these points members, the first ones or behind those there are."""
        self.members += members.tolist()
        _meet(self.points, members, self.group[members], self.nearest)

    def grow(self, count: int, enough: float = 0.0) -> None:
        """Choose members until there are `count`, or no point's squared distance to one is over `enough`."""
        enough = max(enough, self._alike)
        away = self.nearest.min(axis=0)
        while len(self.members) < count and away.max() > enough:
            self.join(_farthest(self.points, away, count - len(self.members), enough))
            self.nearest.min(axis=0, out=away)

    def radius(self) -> float:
        """Squared distance of the point farthest from all members."""
        return float(self.nearest.min(axis=0).max())

    def without(self, group: int) -> Indices:
        """Members that cover all points of the other groups as closely, and are none of this one's.

        The others' members, and greedily chosen ones of the others' points, where holes are left.
        """
        others = np.arange(len(self.nearest)) != group
        away = self.nearest[others].min(axis=0)
        away[self.group == group] = 0
        members = [index for index in self.members if self.group[index] != group]
        enough = max(self.radius(), self._alike)
        while away.max() > enough:
            fresh = _farthest(self.points, away, len(away), enough)
            members += fresh.tolist()
            _meet(self.points, fresh, np.zeros_like(fresh), away[None])
        return np.array(members, np.int64)


def _farthest(points: Floats, away: Floats, count: int, enough: float) -> Indices:
    """The next members, at most `count`, in the order of the plain greedy algorithm; one at least.

    away (n,) are the points' squared distances to all members so far; ends at `enough` of it.
    """
    outside = enough
    pool = np.arange(len(points))
    if len(points) > POOL:
        order = np.argpartition(away, len(away) - POOL)
        outside = max(enough, float(away[order[:-POOL]].max()))
        # The first farthest of all belongs in, whichever of equals the partition took.
        pool = np.union1d(order[-POOL:], [int(away.argmax())])
    left = away[pool]
    between = lower(points[pool]) @ points[pool].T
    chosen: list[int] = []
    while len(chosen) < count:
        place = int(left.argmax())
        if chosen and left[place] <= outside:
            break
        chosen.append(place)
        np.minimum(left, between[place], out=left)
        left[place] = 0
    return pool[chosen]


def _meet(points: Floats, members: Indices, group: Indices, nearest: Floats) -> None:
    """Lower nearest (groups, n) to the squared distances of all points to new members, by their group."""
    for start in range(0, len(members), MEMBERS_AT_ONCE):
        part = members[start : start + MEMBERS_AT_ONCE]
        of = group[start : start + MEMBERS_AT_ONCE]
        order = np.argsort(of, kind="stable")
        found, edges = np.unique(of[order], return_index=True)
        lowered = lower(points[part[order]])
        for row in range(0, len(points), POINTS_AT_ONCE):
            rows = slice(row, row + POINTS_AT_ONCE)
            squared = np.split(lowered @ points[rows].T, edges[1:])  # 20 times as fast as minimum.reduceat
            for number, distances in zip(found, squared, strict=True):
                np.minimum(nearest[number, rows], distances.min(axis=0), out=nearest[number, rows])
        nearest[of, part] = 0

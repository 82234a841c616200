"""Which good patches a PatchCore bank is chosen from, how many it gets, and where each of them lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibrate.bank import Bank
from calibrate.coreset import Cover, room
from calibrate.folds import Indices
from calibrate.graph import position_cells, valid_cells
from calibrate.spool import Spool
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.fit import Plan

CORESET = "10%"  # the paper's middle choice; its 1 % is as good within 0.1 points of AUROC (table 1)
# Unless asked for: 1 % of 400 frames of 1024 positions, and 3 ms a frame on two cores. Measured with
# fixed filters on simulated parts, 123,000 patches: AUROC 0.953 of 1,229, 0.990 of 2,000, 0.998 of 4,096,
# 0.997 of 12,288.
MEMBERS = 4096
MOST = 0.9  # of all patches; with every one, golden frames score rounding errors instead of distances
CANDIDATES = 500_000  # 256 MB at PROJECTED dimensions
PROJECTED = 128  # dimensions in which the coreset is chosen (Johnson-Lindenstrauss; the reference's number)


@dataclass(frozen=True)
class Sizes:
    """How many patches there are, how many are looked at for the coreset, how many it gets."""

    patches: int
    candidates: int
    members: int
    dimensions: int

    @classmethod
    def of(cls, plan: Plan) -> Sizes:
        """Raises FitError where more members are asked for than there are candidates."""
        counted = int(_counting(plan).sum())
        patches = counted * plan.samples
        candidates = min(counted, max(1, CANDIDATES // plan.samples)) * plan.samples
        asked = plan.options.coreset or CORESET
        members = members_of(asked, patches)
        if plan.options.coreset is None:
            members = min(members, MEMBERS)
        if members > candidates:
            raise FitError(
                f"--coreset {asked} asks for {members:,} patches of {candidates:,} to choose from; "
                f"give --coreset {candidates // 10} or fewer"
            )
        if members > MOST * patches:
            raise FitError(
                f"--coreset {asked} keeps nearly every good patch, so good frames would lie at no distance "
                f"from their own; give --coreset {MOST:.0%} or less"
            )
        return cls(patches, candidates, members, plan.reduction.dimensions)

    def words(self) -> str:
        drawn = (
            "" if self.candidates == self.patches else f", chosen from {self.candidates:,} drawn at random"
        )
        share = self.members / self.patches
        return f"a bank of {self.members:,} of {self.patches:,} good patches ({share:.2%}){drawn}"


def members_of(asked: str, patches: int) -> int:
    """'10%' of the patches, rounded up, or a plain number."""
    if asked.endswith("%"):
        return math.ceil(patches * float(asked[:-1]) / 100)
    return int(asked)


class Candidates:
    """The patches that a coreset is chosen from, in few dimensions, and where they lie in the spool.

    Candidates are numbered sample by sample, as many of each; position (samples, each) is where they lie.
    """

    def __init__(self, plan: Plan, size: Sizes) -> None:
        self._rng = np.random.default_rng(plan.options.seed)
        self._cells = np.flatnonzero(_counting(plan))
        self._each = size.candidates // plan.samples
        self._weight, self._fold = plan.options.position_weight, plan.folds.of_frame
        self._where = _where(plan)
        self._projection = projection(size.dimensions, plan.options.seed)
        few = size.dimensions if self._projection is None else PROJECTED
        self.points = room(size.candidates, few + 2 * bool(self._weight))
        self.position = np.empty((plan.samples, self._each), np.int32)
        self._sum, self._squares = np.zeros(size.dimensions), 0.0

    def take(self, sample: int, embeddings: Floats) -> None:
        """Draw this sample's candidates from its embeddings (positions, d)."""
        cells = self._cells
        if self._each < len(cells):
            cells = np.sort(self._rng.choice(cells, self._each, replace=False))
        drawn = embeddings[cells]
        self.position[sample] = cells
        self._sum += drawn.sum(axis=0, dtype=np.float64)
        self._squares += float(np.square(drawn, dtype=np.float64).sum())
        few = drawn if self._projection is None else drawn @ self._projection
        part = slice(sample * self._each, (sample + 1) * self._each)
        self.points[part, : few.shape[1]] = few

    @property
    def centre(self) -> Floats:
        """Mean of the candidates, (d,)."""
        return (self._sum / self.position.size).astype(np.float32)

    @property
    def places(self) -> Floats:
        """Coordinates of all positions, (positions, 2), (positions, 0) without a position weight.

        At weight 1 two patches a shorter side of the map apart are as unlike, by their place alone, as two
        random patches of good parts are by their features (root mean square).
        """
        count = self.position.size
        variance = self._squares / count - float(np.square(self._sum / count).sum())
        unlike = math.sqrt(2 * max(variance, 0.0))
        return (self._weight * unlike * self._where[:, : 2 * bool(self._weight)]).astype(np.float32)

    def cover(self) -> Cover:
        """Ready to choose from; points are used up."""
        if self._weight:
            self.points[:, -4:-2] = self.places[self.position.ravel()]
        return Cover(self.points, np.repeat(self._fold, self._each))

    def rows(self, spool: Spool, wanted: Indices) -> dict[int, Floats]:
        """The whole embeddings (d,) of candidates by number, read sample by sample."""
        found: dict[int, Floats] = {}
        wanted = np.unique(wanted)
        for sample in np.unique(wanted // self._each):
            embeddings = spool.read_frame(int(sample))
            for index in wanted[wanted // self._each == sample]:
                found[int(index)] = embeddings[self.position.flat[index]].copy()
        return found

    def bank(self, members: Indices, rows: dict[int, Floats]) -> Bank:
        """The bank of some candidates."""
        features = np.stack([rows[int(index)] for index in members]) - self.centre
        at = self.places[self.position.ravel()[members]]
        return Bank(np.hstack([features, at]), self.centre, self.places)


def projection(dimensions: int, seed: int) -> Floats | None:
    """A random (dimensions, PROJECTED) matrix that keeps distances (Johnson-Lindenstrauss), None for few.

    It changes a distance by 6 % (standard deviation, whatever the dimensions).
    """
    if dimensions <= PROJECTED:
        return None
    rng = np.random.default_rng((seed, dimensions))
    return (rng.standard_normal((dimensions, PROJECTED)) / math.sqrt(PROJECTED)).astype(np.float32)


def _counting(plan: Plan) -> npt.NDArray[np.bool_]:
    """Positions whose cell counts in the map, (positions,)."""
    rows, columns = position_cells(plan.geometry).T
    return np.asarray(valid_cells(plan.geometry, plan.region.ignored)[rows, columns])


def _where(plan: Plan) -> npt.NDArray[np.float64]:
    """Row and column of every position around the middle of the map, in units of its shorter side."""
    shape = np.array(plan.geometry.map_shape)
    return np.asarray((position_cells(plan.geometry) - (shape - 1) / 2) / shape.min())

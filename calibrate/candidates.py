"""Which good patches a PatchCore bank is chosen from, how many it gets, and where each of them lies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibrate.bank import Bank
from calibrate.coreset import Cover, room
from calibrate.folds import Indices
from calibrate.graph import position_cells, valid_cells
from calibrate.remembered import folds_of_members
from calibrate.tiles import Doubles
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.learned import Earlier
    from calibrate.plan import Plan

# A tenth, the paper's middle choice, is too little of few patches: with 14 frames of 64 positions, or 24 of
# 42, a painted square passed. Of 16 frames of 1024, 10, 25 and 50 % find the same (docs/research-log.md).
CORESET = "50%"
# Unless asked for: 1 % of 400 frames of 1024 positions, and 3 ms a frame on two cores. Measured with
# fixed filters on simulated parts, 123,000 patches: AUROC 0.953 of 1,229, 0.990 of 2,000, 0.998 of 4,096,
# 0.997 of 12,288.
MEMBERS = 4096
MOST = 0.9  # of all patches; with every one, all golden frames would lie at the bank's floor
CANDIDATES = 500_000  # 256 MB at PROJECTED dimensions
PROJECTED = 128  # dimensions in which the coreset is chosen (Johnson-Lindenstrauss; the reference's number)


@dataclass(frozen=True)
class Sizes:
    """How many patches there are, how many are looked at for the coreset, how many it gets."""

    patches: int
    candidates: int
    members: int
    dimensions: int

    earlier: int = 0  # members of the bank that `calibrate extend` adds to, besides all these

    @classmethod
    def of(cls, plan: Plan) -> Sizes:
        """Of the bank of all tiles. Raises FitError where more members are asked for than candidates."""
        counted, dimensions = int(counting(plan).sum()), plan.reduction.dimensions
        if plan.earlier is None:
            return cls.chosen(counted, plan.samples, dimensions, plan.options.coreset)
        found = cls._asked(counted, plan.samples, dimensions, plan.options.coreset)
        new = cls._asked(counted, int(plan.fresh.sum()), dimensions, plan.options.coreset)
        members = min(new.members, found.candidates)
        return replace(found, members=members, earlier=len(earlier_bank(plan.earlier).members))

    @classmethod
    def chosen(cls, counted: int, samples: int, dimensions: int, coreset: str | None) -> Sizes:
        """Of a bank from so many positions of so many samples. Raises FitError as of() does."""
        found, asked = cls._asked(counted, samples, dimensions, coreset), coreset or CORESET
        if found.members > found.candidates:
            raise FitError(
                f"--coreset {asked} asks for {found.members:,} patches of {found.candidates:,} to choose "
                f"from; give --coreset {found.candidates // 10} or fewer"
            )
        if found.members > MOST * found.patches:
            raise FitError(
                f"--coreset {asked} keeps nearly every good patch, so good frames would lie at no distance "
                f"from their own; give --coreset {MOST:.0%} or less"
            )
        return found

    @classmethod
    def _asked(cls, counted: int, samples: int, dimensions: int, coreset: str | None) -> Sizes:
        patches = counted * samples
        candidates = min(counted, max(1, CANDIDATES // samples)) * samples
        members = members_of(coreset or CORESET, patches)
        if coreset is None:
            members = min(members, MEMBERS)
        return cls(patches, candidates, members, dimensions)

    def words(self) -> str:
        drawn = (
            "" if self.candidates == self.patches else f", chosen from {self.candidates:,} drawn at random"
        )
        if self.earlier:
            return (
                f"a bank of {self.earlier:,} patches, and at most {self.members:,} more of {self.patches:,} "
                f"at hand{drawn}: those that lie farther from it than all before did"
            )
        share = self.members / self.patches
        return f"a bank of {self.members:,} of {self.patches:,} good patches ({share:.2%}){drawn}"


def members_of(asked: str, patches: int) -> int:
    """'10%' of the patches, rounded up, or a plain number."""
    if asked.endswith("%"):
        return math.ceil(patches * float(asked[:-1]) / 100)
    return int(asked)


@dataclass(frozen=True)
class Ground:
    """Where the good patches lie that a bank is chosen from: in the whole map, or in one tile of it."""

    counting: npt.NDArray[np.bool_]  # positions whose cell counts in the map, (positions,)
    where: Doubles  # row and column of every position, (positions, 2); see _where
    of_frame: Indices  # fold of each sample
    seed: int
    position_weight: float
    earlier: Bank | None = None  # that members are added to
    fold_of_member: Indices = field(default_factory=lambda: np.empty(0, np.int64))  # of the earlier bank

    @classmethod
    def of(cls, plan: Plan) -> Ground:
        earlier = earlier_bank(plan.earlier) if plan.earlier else None
        options, of_frame = plan.options, plan.folds.of_frame
        weight, members = options.position_weight, folds_of_members(plan)
        return cls(counting(plan), _where(plan), of_frame, options.seed, weight, earlier, members)

    def tile(self, number: int, tiles: int) -> Ground:
        """Of one of so many tiles."""
        each = len(self.counting) // tiles
        part = slice(number * each, (number + 1) * each)
        return replace(self, counting=self.counting[part], where=self.where[part])


class Candidates:
    """The patches that a coreset is chosen from, in few dimensions, and where they lie in the spool.

    Candidates are numbered sample by sample, as many of each; position (samples, each) is where they lie.
    Behind the members of an earlier bank, where there is one: these come first.
    """

    def __init__(self, ground: Ground, size: Sizes) -> None:
        self._rng = np.random.default_rng(ground.seed)
        self._earlier, self._where = ground.earlier, ground.where
        self._cells = np.flatnonzero(ground.counting)
        self._weight, self._fold = ground.position_weight, ground.of_frame
        self._fold_of_member = ground.fold_of_member
        samples = len(ground.of_frame)
        self._each = size.candidates // samples
        self._projection = projection(size.dimensions, ground.seed)
        few = size.dimensions if self._projection is None else PROJECTED
        self.points = room(size.earlier + size.candidates, few + 2 * bool(self._weight))
        if self._earlier is not None:
            features = self._earlier.members[:, : size.dimensions] + self._earlier.centre
            self.points[: size.earlier, :few] = self._in_few(features)
            self.points[: size.earlier, few:-2] = self._earlier.members[:, size.dimensions :]
        self._before = size.earlier
        self.position = np.empty((samples, self._each), np.int32)
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
        few = self._in_few(drawn)
        start = self._before + sample * self._each
        self.points[start : start + self._each, : few.shape[1]] = few

    def _in_few(self, features: Floats) -> Floats:
        return features if self._projection is None else features @ self._projection

    @property
    def centre(self) -> Floats:
        """Mean of the candidates, (d,); a bank that grows keeps its own."""
        if self._earlier is not None:
            return self._earlier.centre
        return (self._sum / self.position.size).astype(np.float32)

    @property
    def places(self) -> Floats:
        """Coordinates of all positions, (positions, 2), (positions, 0) without a position weight.

        At weight 1 two patches a shorter side of the map apart are as unlike, by their place alone, as two
        random patches of good parts are by their features (root mean square).
        """
        if self._earlier is not None:
            return self._earlier.places
        count = self.position.size
        variance = self._squares / count - float(np.square(self._sum / count).sum())
        unlike = math.sqrt(2 * max(variance, 0.0))
        return (self._weight * unlike * self._where[:, : 2 * bool(self._weight)]).astype(np.float32)

    def cover(self) -> Cover:
        """Ready to choose from; points are used up."""
        if self._weight:
            self.points[self._before :, -4:-2] = self.places[self.position.ravel()]
        group = np.concatenate([self._fold_of_member, np.repeat(self._fold, self._each)])
        cover = Cover(self.points, group)
        cover.join(np.arange(self._before))
        return cover

    def samples(self, members: Indices) -> Indices:
        """Of those members that are candidates, the sample that each is from."""
        return (members[members >= self._before] - self._before) // self._each

    def rows(self, read: Callable[[int], Floats], wanted: Indices) -> dict[int, Floats]:
        """The whole embeddings (d,) of candidates by number; read gives those of a sample, (positions, d)."""
        found: dict[int, Floats] = {}
        wanted = np.unique(wanted[wanted >= self._before]) - self._before
        for sample in np.unique(wanted // self._each):
            embeddings = read(int(sample))
            for index in wanted[wanted // self._each == sample]:
                found[int(index)] = embeddings[self.position.flat[index]].copy()
        return found

    def bank(self, members: Indices, rows: dict[int, Floats]) -> Bank:
        """The bank of some candidates; whole embeddings of those in rows."""
        old, new = members[members < self._before], members[members >= self._before] - self._before
        features = np.array([rows[int(index)] for index in new], np.float32)
        features = features.reshape(len(new), len(self.centre))
        added = np.hstack([features - self.centre, self.places[self.position.ravel()[new]]])
        before = self._earlier.members[old] if self._earlier else added[:0]
        return Bank(np.vstack([before, added]), self.centre, self.places)


def projection(dimensions: int, seed: int) -> Floats | None:
    """A random (dimensions, PROJECTED) matrix that keeps distances (Johnson-Lindenstrauss), None for few.

    It changes a distance by 6 % (standard deviation, whatever the dimensions).
    """
    if dimensions <= PROJECTED:
        return None
    rng = np.random.default_rng((seed, dimensions))
    return (rng.standard_normal((dimensions, PROJECTED)) / math.sqrt(PROJECTED)).astype(np.float32)


def earlier_bank(earlier: Earlier) -> Bank:
    return Bank.load(earlier.folder)


def counting(plan: Plan) -> npt.NDArray[np.bool_]:
    """Positions whose cell counts in the map, (positions,)."""
    rows, columns = position_cells(plan.geometry).T
    return np.asarray(valid_cells(plan.geometry, plan.region.ignored)[rows, columns])


def _where(plan: Plan) -> Doubles:
    """Row and column of every position around the middle of the map, in units of its shorter side."""
    shape = np.array(plan.geometry.map_shape)
    return np.asarray((position_cells(plan.geometry) - (shape - 1) / 2) / shape.min())

"""PaDiM: a Gaussian per position, and how far a part's patches lie from it.

Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization". Covariances are regularised by epsilon on the diagonal (eq. 1); distances are
Mahalanobis (eq. 2). All statistics are float64; the graph holds float32, or 16-bit fixed point
where float32 would be larger than PACK_ABOVE_BYTES.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dtrtri

from calibrate.folds import Folds, Indices
from calibrate.graph import Reduction
from calibrate.heads import WhiteningWriter, is_packed, stored_values
from calibrate.kinds import Cost, Kind, Learned, check_memory, kept_in
from calibrate.options import FitOptions
from calibrate.parallel import PROCESS_MB, Here, Unit, Workers, together, workers
from calibrate.progress import Progress
from calibrate.spool import Spool
from calibrate.sums import Sums, SumsWriter, kept_bytes, kept_count, read_sums
from calibrate.tiles import Doubles
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan

DIMENSIONS = 100  # section IV: ResNet-18
# Of the matrices in float32, which every frame reads whole: of 64 tiles of 16 x 16 cells those of 96
# features, of 32 x 32 of 48; and features at least. What fewer lose is in docs/research-log.md.
READ_MB, FEWEST = 405, 32
ITSELF_MB, BLOCK_MB = 600, 50  # of a fit without its blocks, and the least that a block is given
NNCF_MB = 750  # more of a fit in 8 bits: NNCF, and what its work leaves, of many tiles
NNCF_LEAST_MB = 300  # of one small frame
GATE_LESS_MB = 75  # than a fit has loaded when its cost is foreseen; measured 45 to 132


class Padim(Kind):
    """The kind `padim`. Every position of every tile has a Gaussian of its own: tiles are an ensemble."""

    name, locally_aware, by_position = "padim", False, True
    surroundings = "where asked"
    precisions: tuple[str, ...] = ("f32", "bf16", "f16")

    def reduction(self, channels: tuple[int, ...], positions: int, options: FitOptions) -> Reduction:
        dimensions = options.dimensions or usual_dimensions(positions)
        return reduce_dimensions(channels, dimensions, options.reduction, options.seed)

    def kept_mb(self, plan: Plan) -> float:
        return kept_bytes(plan.positions, plan.reduction.dimensions) / 1e6

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Blocks of positions keep within memory_mb.

        Raises FitError where the network or the recipe alone takes more, and where the processes asked for
        could not.
        """
        allowed_mb = plan.options.memory_mb
        block_budget(plan.options)
        d, p, n = plan.reduction.dimensions, plan.positions, plan.samples
        packed = is_packed(p, d)
        values, eight_bits = p * stored_values(d, packed), plan.options.precision == "int8"
        recipe = values * (2 if packed or plan.hint == "bf16" else 4)
        largest = values * (2 if packed else 4) if eight_bits else recipe  # which is compared with one in f32
        itself_mb = peak_mb + (NNCF_MB if eight_bits else 0)
        # The gate loads the whole recipe; measured: packed matrices once (with means, spreads, scales and
        # diagonals), plain ones twice.
        loaded_mb = (largest + 16 * p * d if packed else 2 * largest) / 2**20
        least_mb = max(peak_mb + eight_bits * NNCF_LEAST_MB, peak_mb - GATE_LESS_MB + loaded_mb)
        check_memory(
            f"the fit of {p:,} patches of {d} features (the network took {peak_mb:.0f} MB)",
            least_mb,
            allowed_mb,
            "" if plan.earlier else "fewer --dimensions, or a smaller --resize",
        )
        factorisations = 2 if plan.folds.leave_one_out else 1 + len(np.unique(plan.folds.of_frame))
        operations = p * d * d * (2 * n * factorisations + d * factorisations)
        return Cost(
            recipe_mb=recipe / 1e6,
            disk_mb=(4 * n * p * (d + 1) + 2 * recipe) / 1e6,
            memory_mb=max(allowed_mb, itself_mb + loaded_mb if eight_bits else 0),
            seconds=operations / 15e9 / plan.options.jobs + p * d * d * 5e-8 + 3,
        )

    def learn(
        self,
        plan: Plan,
        embeddings: Iterable[npt.NDArray[np.float32]],
        folder: Path,
        progress: Progress,
    ) -> Learned:
        options, p, d = plan.options, plan.positions, plan.reduction.dimensions
        block = block_width(plan.samples, d, block_budget(options))
        features = Spool(folder, plan.embedded, p, d, block)
        for index, values in enumerate(embeddings):
            features.write_frame(index, values)
        writer = WhiteningWriter(folder, p, d, halved=plan.hint == "bf16")
        away = Spool(folder, int(plan.folds.measured.sum()), p, 1, block)
        checked = Spool(folder, len(plan.checked), p, 1, block)
        blocks = progress.track(features.blocks(), "fitting positions")
        with workers(options) as by, _known_sums(plan, folder) as known:
            fit_positions(
                features, blocks, options.epsilon, plan.folds, plan.checked, writer, away, checked, known, by
            )
        features.close()
        return Learned(writer, away, checked, {"epsilon": options.epsilon})


def block_budget(options: FitOptions) -> float:
    """Bytes for each block of those that are in memory together. Raises FitError where that is too little."""
    itself = ITSELF_MB + (NNCF_MB if options.precision == "int8" else 0)
    if options.jobs == 1 and not options.on:
        return max(BLOCK_MB, (options.memory_mb - itself) / 2) * 1e6
    count = together(options)
    each = (options.memory_mb - itself) / count - PROCESS_MB
    if each < 2 * BLOCK_MB:
        asked = "--on" if options.on else f"--jobs {options.jobs}"
        needed = math.ceil(itself + count * (PROCESS_MB + 2 * BLOCK_MB))
        raise FitError(
            f"{asked} needs --memory-mb {needed} at least, got {options.memory_mb}: "
            f"{PROCESS_MB} MB for each process, and {2 * BLOCK_MB} to work in; give that, or fewer jobs"
        )
    return each / 2 * 1e6


@dataclass(frozen=True)
class Known:
    """Sums of an earlier fit, and where those of this one go; by default neither."""

    earlier: Path | None = None  # a folder of a SumsWriter
    fresh: npt.NDArray[np.bool_] | None = None  # samples that are not among the earlier ones, (samples,)
    writer: SumsWriter | None = None


@contextmanager
def _known_sums(plan: Plan, folder: Path) -> Iterator[Known]:
    earlier, count = plan.earlier, plan.samples
    if earlier is not None:
        count = kept_count(earlier.folder) + int(plan.fresh.sum())
    d = plan.reduction.dimensions
    writer = SumsWriter(kept_in(folder), count, plan.positions, d) if plan.keeps else None
    try:
        yield Known(earlier.folder, plan.fresh, writer) if earlier else Known(writer=writer)
    finally:
        if writer is not None:
            writer.close()


def usual_dimensions(positions: int) -> int:
    """Features kept where none are asked for: as many as keep every frame's reading of matrices short."""
    most = READ_MB * 1e6 / (4 * positions)
    return next((d for d in range(DIMENSIONS, FEWEST, -1) if stored_values(d, packed=False) <= most), FEWEST)


def reduce_dimensions(channels: tuple[int, ...], dimensions: int, how: str, seed: int) -> Reduction:
    """Keep `dimensions` of all channels: a seeded random choice (PaDiM), or a random semi-orthogonal
    projection (Kim et al. 2021, "Semi-orthogonal Embedding"); all channels where fewer exist.
    """
    total, rng = sum(channels), np.random.default_rng(seed)
    everything = tuple(np.arange(c) for c in channels)
    if dimensions >= total:
        return Reduction(everything)
    edges = np.cumsum((0, *channels))
    if how == "random":
        index = np.sort(rng.permutation(total)[:dimensions])
        parts = [index[(index >= a) & (index < b)] - a for a, b in pairwise(edges)]
        return Reduction(tuple(parts))
    q, r = np.linalg.qr(rng.standard_normal((total, dimensions)))
    q = (q * np.sign(np.diag(r))).astype(np.float32)
    matrices = tuple(q[a:b] for a, b in pairwise(edges))
    return Reduction(everything, matrices)


def whiten(covariance: Doubles) -> Doubles:
    """Lower triangular W with W' W = covariance^-1, of a batch (positions, d, d).

    Raises FitError where a covariance is not positive definite.
    """
    try:
        factors = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise FitError("a covariance is singular; give a larger --epsilon") from error
    return np.stack([dtrtri(factor, lower=1)[0] for factor in factors])


def gaussians(x: Doubles, epsilon: float) -> tuple[Doubles, Doubles]:
    """Mean (positions, d) and covariance (positions, d, d) of x (positions, frames, d); eq. 1."""
    return Sums.of(x).gaussian(epsilon)


def distances(x: Doubles, mean: Doubles, whitening: Doubles) -> Doubles:
    """Mahalanobis distance of x (positions, frames, d) as (positions, frames); eq. 2."""
    return np.asarray(np.linalg.norm((x - mean[:, None]) @ whitening.transpose(0, 2, 1), axis=2))


def leave_one_out(x: Doubles, epsilon: float, known: Sums | None = None) -> Doubles:
    """Distance of every frame to the Gaussian of all others, (positions, frames), in one factorisation.

    known are the sums of all frames, where x (positions, frames, d) are not all of them.

    With z = x_i - mean: Cov without i = (n-1)/(n-2) S - c z z', c = n/((n-1)(n-2)), and
    x_i - mean without i = n/(n-1) z, so Sherman-Morrison gives D^2 = (n/(n-1))^2 q / (1 - c q)
    with q = z' ((n-1)/(n-2) S + epsilon I)^-1 z.
    """
    known = known or Sums.of(x)
    n = known.count
    scaled = (n - 1) / (n - 2)
    mean, covariance = known.gaussian(epsilon / scaled)
    q = distances(x, mean, whiten(covariance * scaled)) ** 2
    # q < 1/c holds in exact arithmetic; rounding must not turn the most unusual part into a NaN.
    rest = np.maximum(1 - n / ((n - 1) * (n - 2)) * q, 1e-9)
    return np.asarray(n / (n - 1) * np.sqrt(q / rest))


def held_out(x: Doubles, epsilon: float, folds: Folds, known: Sums | None = None) -> Doubles:
    """Distance of every measured frame to the Gaussian without its fold, (positions, measured).

    known as in leave_one_out.
    """
    known = known or Sums.of(x)
    if folds.leave_one_out:
        return leave_one_out(x, epsilon, known)
    out = np.empty(x.shape[:2])
    for fold in np.unique(folds.of_frame):
        members = folds.of_frame == fold
        mean, covariance = known.minus(Sums.of(x[:, members])).gaussian(epsilon)
        out[:, members] = distances(x[:, members], mean, whiten(covariance))
    return out[:, folds.measured]


def block_width(frames: int, dimensions: int, budget_bytes: float) -> int:
    """Positions at once: about three copies of the features and six of the matrices fit the budget."""
    each = 8 * dimensions * (3.5 * frames + 6 * dimensions)
    return max(1, min(512, int(budget_bytes / each)))


@dataclass(frozen=True)
class Block:
    """What is fitted of a block of positions."""

    mean: Doubles  # (positions, d)
    spread: Doubles  # standard deviations, (positions, d)
    whitening: Doubles  # (positions, d, d)
    away: Floats  # held-out distances, (measured frames, positions)
    checked: Floats  # distances of the frames that the graph must repeat, (frames, positions)
    sums: Sums | None  # of all frames that taught, where they are kept


def fit_block(
    everything: Floats,
    epsilon: float,
    folds: Folds,
    checked: Indices,
    earlier: Sums | None = None,
    fresh: npt.NDArray[np.bool_] | None = None,
    keep: bool = False,
) -> Block:
    """Fit the Gaussians of features (frames, positions, d); the first frames, which folds knows, teach."""
    features = everything.transpose(1, 0, 2).astype(np.float64)
    x = features[:, : len(folds.of_frame)]
    known = Sums.of(x) if earlier is None else earlier.plus(Sums.of(x[:, fresh]))
    mean, covariance = known.gaussian(epsilon)
    whitening = whiten(covariance)
    repeated = distances(features[:, checked], mean, whitening).T.astype(np.float32)
    spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    away = held_out(x, epsilon, folds, known).T.astype(np.float32)
    return Block(mean, spread, whitening, away, repeated, known if keep else None)


def fit_positions(
    features: Spool,
    blocks: Iterable[tuple[int, int]],
    epsilon: float,
    folds: Folds,
    checked: Indices,
    writer: WhiteningWriter,
    held_out_spool: Spool,
    checked_spool: Spool,
    known: Known | None = None,
    by: Workers | None = None,
) -> None:
    """Fit every position's Gaussian, block by block (features.blocks()); distances go to the two spools.

    Only the frames that folds knows teach; features may hold more behind them. held_out_spool receives
    (measured frames, positions, 1), checked_spool the distances of the frames `checked`, which the
    compiled graph must repeat.
    """
    known, by = known or Known(), by or Here()

    def units() -> Iterator[Unit]:
        for start, width in features.blocks():
            earlier = read_sums(known.earlier, start, width) if known.earlier else None
            block = features.read_block(start, width)
            yield block, epsilon, folds, checked, earlier, known.fresh, known.writer is not None

    for (start, _), found in zip(blocks, by.run(fit_block, units()), strict=True):
        writer.write(start, found.mean, found.spread, found.whitening)
        held_out_spool.write_block(start, found.away[..., None])
        checked_spool.write_block(start, found.checked[..., None])
        if known.writer is not None and found.sums is not None:
            known.writer.write(found.sums)

"""PaDiM: a Gaussian per position, and how far a part's patches lie from it.

Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization". Covariances are regularised by epsilon on the diagonal (eq. 1); distances are
Mahalanobis (eq. 2). All statistics are float64; the graph holds float32, or 16-bit fixed point
where float32 would be larger than PACK_ABOVE_BYTES.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dtrtri

from calibrate.folds import Folds, Indices
from calibrate.graph import Reduction
from calibrate.heads import WhiteningWriter, is_packed, stored_values
from calibrate.kinds import Cost, Learned
from calibrate.options import FitOptions
from calibrate.progress import Progress
from calibrate.spool import Spool
from calibrate.tiles import Doubles
from inspectord.errors import FitError

if TYPE_CHECKING:
    from calibrate.fit import Plan

DIMENSIONS = 100  # section IV: ResNet-18


class Padim:
    """The kind `padim`."""

    name, locally_aware = "padim", False
    precisions: tuple[str, ...] = ("f32", "bf16", "f16")

    def layers(self, backbone: str) -> tuple[str, ...] | None:
        return None

    def folds(self, how: str, frames: int) -> str:
        """Leaving one out costs nothing here: see leave_one_out."""
        return how

    def reduction(self, channels: tuple[int, ...], options: FitOptions) -> Reduction:
        return reduce_dimensions(channels, options.dimensions or DIMENSIONS, options.reduction, options.seed)

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Blocks of positions keep within memory_mb, unless the network or the recipe alone takes more."""
        d, p, n = plan.reduction.dimensions, plan.positions, plan.samples
        packed = is_packed(p, d)
        recipe = p * stored_values(d, packed) * (2 if packed else 4)
        factorisations = 2 if plan.folds.leave_one_out else 1 + len(np.unique(plan.folds.of_frame))
        operations = p * d * d * (2 * n * factorisations + d * factorisations)
        return Cost(
            recipe_mb=recipe / 1e6,
            disk_mb=(4 * n * p * (d + 1) + 2 * recipe) / 1e6,
            # The gate loads the whole recipe; measured: packed matrices once, plain ones twice.
            memory_mb=max(plan.options.memory_mb, peak_mb + recipe / 1e6 * (1.2 if packed else 2)),
            seconds=operations / 15e9 + p * d * d * 5e-8 + 3,
        )

    def learn(
        self,
        plan: Plan,
        embeddings: Iterable[npt.NDArray[np.float32]],
        folder: Path,
        progress: Progress,
    ) -> Learned:
        options, p, d = plan.options, plan.positions, plan.reduction.dimensions
        budget = max(50e6, (options.memory_mb * 1e6 - 600e6) / 2)
        block = block_width(plan.samples, d, budget)
        features = Spool(folder, plan.samples + 1, p, d, block)
        for index, values in enumerate(embeddings):
            features.write_frame(index, values)
        writer = WhiteningWriter(folder, p, d)
        away = Spool(folder, int(plan.folds.measured.sum()), p, 1, block)
        checked = Spool(folder, len(plan.checked), p, 1, block)
        blocks = progress.track(features.blocks(), "fitting positions")
        fit_positions(features, blocks, options.epsilon, plan.folds, plan.checked, writer, away, checked)
        features.close()
        return Learned(writer, away, checked, {"epsilon": options.epsilon})


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
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    covariance = centred.transpose(0, 2, 1) @ centred / (x.shape[1] - 1)
    covariance[:, np.arange(x.shape[2]), np.arange(x.shape[2])] += epsilon
    return mean, covariance


def distances(x: Doubles, mean: Doubles, whitening: Doubles) -> Doubles:
    """Mahalanobis distance of x (positions, frames, d) as (positions, frames); eq. 2."""
    return np.asarray(np.linalg.norm((x - mean[:, None]) @ whitening.transpose(0, 2, 1), axis=2))


def leave_one_out(x: Doubles, epsilon: float) -> Doubles:
    """Distance of every frame to the Gaussian of all others, (positions, frames), in one factorisation.

    With z = x_i - mean: Cov without i = (n-1)/(n-2) S - c z z', c = n/((n-1)(n-2)), and
    x_i - mean without i = n/(n-1) z, so Sherman-Morrison gives D^2 = (n/(n-1))^2 q / (1 - c q)
    with q = z' ((n-1)/(n-2) S + epsilon I)^-1 z.
    """
    n = x.shape[1]
    scaled = (n - 1) / (n - 2)
    mean, covariance = gaussians(x, epsilon / scaled)
    q = distances(x, mean, whiten(covariance * scaled)) ** 2
    # q < 1/c holds in exact arithmetic; rounding must not turn the most unusual part into a NaN.
    rest = np.maximum(1 - n / ((n - 1) * (n - 2)) * q, 1e-9)
    return np.asarray(n / (n - 1) * np.sqrt(q / rest))


def held_out(x: Doubles, epsilon: float, folds: Folds) -> Doubles:
    """Distance of every measured frame to the Gaussian without its fold, (positions, measured)."""
    if folds.leave_one_out:
        return leave_one_out(x, epsilon)
    out = np.empty(x.shape[:2])
    for fold in np.unique(folds.of_frame):
        members = folds.of_frame == fold
        mean, covariance = gaussians(x[:, ~members], epsilon)
        out[:, members] = distances(x[:, members], mean, whiten(covariance))
    return out[:, folds.measured]


def block_width(frames: int, dimensions: int, budget_bytes: float) -> int:
    """Positions at once: about three copies of the features and six of the matrices fit the budget."""
    each = 8 * dimensions * (3.5 * frames + 6 * dimensions)
    return max(1, min(512, int(budget_bytes / each)))


def fit_positions(
    features: Spool,
    blocks: Iterable[tuple[int, int]],
    epsilon: float,
    folds: Folds,
    checked: Indices,
    writer: WhiteningWriter,
    held_out_spool: Spool,
    checked_spool: Spool,
) -> None:
    """Fit every position's Gaussian, block by block (features.blocks()); distances go to the two spools.

    Only the frames that folds knows teach; features may hold more behind them. held_out_spool receives
    (measured frames, positions, 1), checked_spool the distances of the frames `checked`, which the
    compiled graph must repeat.
    """
    taught = len(folds.of_frame)
    for start, width in blocks:
        everything = features.read_block(start, width).transpose(1, 0, 2).astype(np.float64)
        x = everything[:, :taught]
        mean, covariance = gaussians(x, epsilon)
        whitening = whiten(covariance)
        writer.write(start, mean, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), whitening)
        known = distances(everything[:, checked], mean, whitening)
        checked_spool.write_block(start, known.T[..., None].astype(np.float32))
        del covariance, whitening
        away = held_out(x, epsilon, folds)
        held_out_spool.write_block(start, away.T[..., None].astype(np.float32))

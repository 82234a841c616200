"""The statistics are PaDiM's, exact, and independent of how they are cut into blocks."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate import heads, padim
from calibrate.folds import Folds
from calibrate.options import FitOptions
from calibrate.spool import Spool
from inspectord.errors import FitError

EPSILON = 0.01


@pytest.fixture
def samples():
    """(positions, frames, d) with correlated features."""
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((6, 12, 12))
    return rng.standard_normal((6, 30, 12)) @ mixing + rng.standard_normal((6, 1, 12)) * 3


def plain(x, others, epsilon):
    """Distance of x (d,) to the Gaussian of others (n, d), by numpy's own covariance and inverse."""
    covariance = np.cov(others, rowvar=False) + epsilon * np.eye(len(x))
    z = x - others.mean(axis=0)
    return np.sqrt(z @ np.linalg.inv(covariance) @ z)


def test_distances_are_mahalanobis(samples):
    mean, covariance = padim.gaussians(samples, EPSILON)
    found = padim.distances(samples, mean, padim.whiten(covariance))
    expected = [[plain(x, position, EPSILON) for x in position] for position in samples]
    assert np.allclose(found, expected, rtol=1e-9)


def test_leave_one_out_equals_refitting_without_the_frame(samples):
    found = padim.leave_one_out(samples, EPSILON)
    expected = [
        [plain(position[i], np.delete(position, i, axis=0), EPSILON) for i in range(len(position))]
        for position in samples
    ]
    assert np.allclose(found, expected, rtol=1e-8)


def test_leave_one_out_holds_with_fewer_frames_than_features(samples):
    few = samples[:, :8]
    expected = plain(few[2, 3], np.delete(few[2], 3, axis=0), EPSILON)
    assert np.isclose(padim.leave_one_out(few, EPSILON)[2, 3], expected, rtol=1e-8)


def test_leave_one_out_without_shrinkage_is_the_known_closed_form(samples):
    n = samples.shape[1]
    mean, covariance = padim.gaussians(samples, 0.0)
    inside = padim.distances(samples, mean, padim.whiten(covariance)) ** 2
    known = n**2 * (n - 2) * inside / ((n - 1) * ((n - 1) ** 2 - n * inside))
    assert np.allclose(padim.leave_one_out(samples, 0.0) ** 2, known, rtol=1e-6)


def test_held_out_folds_equal_refitting_without_the_fold(samples):
    fold = np.repeat(np.arange(10), 3)
    measured = np.arange(30) % 3 == 0
    found = padim.held_out(samples, EPSILON, Folds(fold, measured))
    assert found.shape == (6, 10)
    for i in range(10):
        expected = plain(samples[4, 3 * i], samples[4, fold != i], EPSILON)
        assert np.isclose(found[4, i], expected, rtol=1e-9)


def fit_in_blocks(samples, folder, block, golden=(0, 7), halved=False):
    positions, frames, d = samples.shape
    folder.mkdir()
    features = Spool(folder, frames, positions, d, block)
    for i in range(frames):
        features.write_frame(i, samples[:, i].astype(np.float32))
    writer = heads.WhiteningWriter(folder, positions, d, halved)
    away = Spool(folder, frames, positions, 1, block)
    inside = Spool(folder, len(golden), positions, 1, block)
    folds = Folds(np.arange(frames), np.ones(frames, bool))
    padim.fit_positions(features, features.blocks(), EPSILON, folds, np.array(golden), writer, away, inside)
    return writer, away, inside


def head_distances(writer, embeddings, precision="f32"):
    entry = op.parameter(list(embeddings.shape), ov.Type.f32)
    model = ov.Model([op.result(writer.build(entry.output(0)))], [entry], "head")
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 2}
    return ov.Core().compile_model(model, "CPU", settings)([embeddings])[0]


def test_matrices_stored_in_bf16_give_the_same_in_a_graph_that_computes_so(samples, tmp_path):
    whole, _, _ = fit_in_blocks(samples, tmp_path / "whole", 6)
    halved, _, _ = fit_in_blocks(samples, tmp_path / "halved", 6, halved=True)
    x = samples[:, 7].astype(np.float32)
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):  # else it computes in float32
        assert np.array_equal(head_distances(whole, x, "bf16"), head_distances(halved, x, "bf16"))
    assert np.allclose(head_distances(halved, x), head_distances(whole, x), rtol=0.02)
    assert not np.array_equal(head_distances(halved, x), head_distances(whole, x))


def test_matrices_stored_in_bf16_take_no_more_memory_meanwhile(tmp_path):
    """In a process of its own, for a peak stays. A constant made of floats takes ten times their memory."""
    told = subprocess.run(
        [sys.executable, "-c", HALVED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    stored_mb, more_mb = (float(word) for word in told.stdout.split())
    assert stored_mb > 60
    assert more_mb < 1.5 * stored_mb


HALVED = """
import sys
from pathlib import Path
import numpy as np, openvino as ov
from openvino import opset15 as op
from calibrate import heads
from inspectord.linux import peak_mb
positions, d = 8192, 80
writer = heads.WhiteningWriter(Path(sys.argv[1]), positions, d, halved=True)
before, one = peak_mb(), np.ones((64, d, d))
for start in range(0, positions, 64):
    writer.write(start, one[:, 0], one[:, 0], one)
entry = op.parameter([positions, d], ov.Type.f32)
model = ov.Model([op.result(writer.build(entry.output(0)))], [entry], "head")
print(2e-6 * positions * heads.stored_values(d, packed=False), peak_mb() - before)
"""


def test_the_width_of_blocks_changes_nothing(samples, tmp_path):
    whole = fit_in_blocks(samples, tmp_path / "whole", 6)
    cut = fit_in_blocks(samples, tmp_path / "cut", 4)
    embeddings = samples[:, 1].astype(np.float32)
    assert np.array_equal(head_distances(whole[0], embeddings), head_distances(cut[0], embeddings))
    assert all(np.array_equal(whole[1].read_frame(i), cut[1].read_frame(i)) for i in range(30))


@pytest.mark.parametrize("packed", [False, True])
def test_the_graph_gives_the_float64_distances(samples, tmp_path, packed, monkeypatch):
    if packed:
        monkeypatch.setattr(heads, "PACK_ABOVE_BYTES", 0)
    writer, _, inside = fit_in_blocks(samples, tmp_path / "fit", 5)
    assert writer.packed == packed
    for number, frame in enumerate((0, 7)):
        x = samples[:, frame].astype(np.float32)
        expected = [
            plain(x[p].astype(float), samples[p].astype(np.float32).astype(float), EPSILON) for p in range(6)
        ]
        assert np.allclose(head_distances(writer, x), expected, rtol=1e-4)
        assert np.allclose(inside.read_frame(number)[:, 0], expected, rtol=1e-5)


def test_a_loop_takes_any_number_of_positions(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "PACK_ABOVE_BYTES", 0)
    monkeypatch.setattr(heads, "LOOP_BYTES", 0)  # then 26 positions at once
    samples = np.random.default_rng(0).standard_normal((130, 15, 5))
    writer, _, inside = fit_in_blocks(samples, tmp_path / "fit", 7)
    found = head_distances(writer, samples[:, 7].astype(np.float32))
    assert np.allclose(found, inside.read_frame(1)[:, 0], rtol=1e-4)


def test_many_tiles_keep_fewer_features_unless_asked():
    cells = 16 * 16  # of a tile of 256 pixels
    kept = [padim.usual_dimensions(tiles * cells) for tiles in (1, 16, 64, 256, 1000)]
    assert kept == [100, 100, 96, 48, padim.FEWEST]
    asked = FitOptions("x", Path(), (), dimensions=70)
    assert padim.Padim().reduction((100,), 64 * cells, asked).dimensions == 70
    assert padim.Padim().reduction((100,), 64 * cells, replace(asked, dimensions=None)).dimensions == 96


@pytest.mark.parametrize(
    ("positions", "dimensions", "network_mb", "took_mb"),
    [
        (16_384, 96, 574, 1297),  # 64 tiles of `standard`
        (262_144, 32, 453, 891),  # of ResNet-18, packed
        (56 * 56, 550, 523, 1427),  # WideResNet-50-2, packed
    ],
)
def test_memory_is_foreseen_as_it_was_measured_and_refused_only_where_it_would_not_do(
    positions, dimensions, network_mb, took_mb
):
    """Peak of the largest process of a whole fit; what blocks take besides adapts to what is allowed."""

    def cost(memory_mb, **changes):
        plan = SimpleNamespace(
            options=FitOptions("x", Path(), (), memory_mb=memory_mb, **changes),
            reduction=SimpleNamespace(dimensions=dimensions),
            positions=positions,
            samples=12,
            folds=Folds(np.arange(12), np.ones(12, bool)),
            hint="f32",
            earlier=None,
        )
        return padim.Padim().cost(plan, peak_mb=network_mb)

    assert cost(1500).memory_mb == 1500
    refused = (
        rf"{positions:,} patches of {dimensions} features \(the network took {network_mb} MB\) would take "
        r"(\d+) MB, --memory-mb allows 700; give --memory-mb \d+, fewer --dimensions, or a smaller --resize"
    )
    with pytest.raises(FitError, match=refused) as found:
        cost(700)
    foreseen = int(re.search(refused, str(found.value)).group(1))
    assert foreseen == pytest.approx(took_mb, rel=0.03)
    with pytest.raises(FitError, match=r"--memory-mb allows \d+"):
        cost(foreseen - 1)
    cost(foreseen + 1)
    assert cost(1500, precision="int8").memory_mb > 1500  # foreseen of many tiles, not known of these


def test_packing_halves_what_is_stored():
    assert heads.stored_values(550, packed=True) * 2 < 0.6 * 550 * 550 * 2
    assert heads.is_packed(56 * 56, 550)
    assert [len(heads.bands(d, packed=True)) for d in (1, 32, 95, 96, 550)] == [1, 2, 2, 4, 17]
    assert not heads.is_packed(64 * 64, 100)


def test_random_reduction_is_seeded_and_spans_all_layers():
    a, b, c = (padim.reduce_dimensions((64, 128, 256), 100, "random", seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(a.chosen, b.chosen, strict=True))
    assert a.dimensions == 100
    assert any(len(x) != len(y) or (x != y).any() for x, y in zip(a.chosen, c.chosen, strict=True))


def test_semi_orthogonal_reduction_has_orthonormal_columns():
    reduction = padim.reduce_dimensions((10, 20), 8, "semi-orthogonal", 0)
    q = np.concatenate(reduction.matrices)
    assert np.allclose(q.T @ q, np.eye(8), atol=1e-6)


def test_a_singular_covariance_says_what_to_do():
    with pytest.raises(FitError, match="--epsilon"):
        padim.whiten(np.zeros((1, 3, 3)))


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    monkeypatch.setattr("calibrate.spool.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FitError, match="TMPDIR"):
        Spool(tmp_path, 10, 10, 10, 5)

"""One graph from the raw frame to the score: what it computes, and what it must never see."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate import padim
from calibrate.backbones import open_backbone
from calibrate.graph import feature_model, joined_map, recipe_model, strides, valid_cells
from calibrate.heads import WhiteningWriter
from calibrate.pieces import LOOP
from calibrate.tiles import Joiner, plan
from inspectord.inspect import compile_model
from inspectord.recipe import FrameSpec


def compiled(model):
    return compile_model(model, "CPU", "f32", threads=2)


def build(shape, dimensions=10, ignored=None, roi=None, tmp_path=None, reduction="random", **wish):
    """Feature graph and whole graph with seeded statistics for frames of shape (h, w, c)."""
    height, width, channels = shape
    backbone = open_backbone("bundled", None, None)
    steps, counts = strides(backbone, channels)
    geometry = plan(roi or (0, 0, width, height), min(steps), max(steps), **wish)
    reduced = padim.reduce_dimensions(counts, dimensions, reduction, 0)
    spec = FrameSpec(width=width, height=height, pixel_format="Mono8" if channels == 1 else "BGR8")
    features = feature_model(spec, geometry, backbone, reduced, ignored)
    positions = geometry.tiles * geometry.tile_grid[0] * geometry.tile_grid[1]
    rng = np.random.default_rng(0)
    writer = WhiteningWriter(tmp_path, positions, reduced.dimensions)
    matrices = np.tril(rng.standard_normal((positions, reduced.dimensions, reduced.dimensions)))
    mean = rng.standard_normal((positions, reduced.dimensions))
    writer.write(0, mean, np.ones_like(mean), matrices)
    embed = compiled(features)
    joiner = Joiner(geometry, valid_cells(geometry, ignored), sigma_cells=1.0)
    return embed, compiled(recipe_model(features, writer, joiner, None)), joiner, writer, matrices


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "wish"),
    [
        ((128, 128, 1), {}),
        ((120, 170, 3), {"reduction": "semi-orthogonal"}),
        ((200, 300, 1), {"tile": 96, "overlap": 32}),
        ((150, 150, 3), {"grid": (2, 3), "roi": (10, 20, 130, 100)}),
        ((600, 400, 1), {"resize": 128}),
    ],
)
def test_map_and_scores_are_those_of_the_plain_computation(shape, wish, tmp_path):
    embed, whole, joiner, writer, matrices = build(shape, tmp_path=tmp_path, **wish)
    frame = noise(shape)[None]
    x = embed([frame])[0].astype(float)
    distances = np.linalg.norm(np.einsum("pij,pj->pi", matrices, x - writer.mean), axis=1)
    expected = joiner(distances)
    found = whole([frame])
    assert np.allclose(found["anomaly_map"], expected, rtol=1e-4, atol=1e-4)
    assert np.isclose(found["score"], expected.max(), rtol=1e-4)
    assert found["tile_scores"].shape == (joiner.geometry.tiles,)
    assert found["tile_scores"].max() == found["score"]


def test_nothing_under_a_mask_or_outside_the_region_reaches_the_score(tmp_path):
    ignored = np.zeros((128, 160), bool)
    ignored[40:70, 50:90] = True
    _, whole, _, _, _ = build((128, 160, 1), ignored=ignored, roi=(16, 16, 128, 96), tmp_path=tmp_path)
    frame = noise((1, 128, 160, 1))
    before = {key.get_any_name(): value.copy() for key, value in whole([frame]).items()}
    hidden = ignored.copy()
    hidden[:16], hidden[112:], hidden[:, :16], hidden[:, 144:] = True, True, True, True
    frame[0, hidden] = 255 - frame[0, hidden]
    after = {key.get_any_name(): value for key, value in whole([frame]).items()}
    assert all(np.array_equal(before[name], after[name]) for name in before)
    frame[0, 100, 100] = 255 - frame[0, 100, 100]
    assert not np.array_equal(before["anomaly_map"], whole([frame])["anomaly_map"])


def test_cells_that_see_a_pixel_count_and_fully_hidden_ones_do_not():
    geometry = plan((0, 0, 64, 64), 4, 16)
    ignored = np.zeros((64, 64), bool)
    ignored[8:16, 8:15] = True
    valid = valid_cells(geometry, ignored)
    assert not valid[2:4, 2].any()
    assert valid[2:4, 3].all()
    assert valid.sum() == 256 - 2


def test_padding_never_counts():
    geometry = plan((0, 0, 66, 64), 4, 16)
    valid = valid_cells(geometry, None)
    assert valid.shape == (16, 20)
    assert valid[:, :17].all()
    assert not valid[:, 17:].any()


def test_red_green_and_blue_reach_the_backbone_in_its_order(tmp_path):
    """OpenCV's frames are blue first, backbones are trained red first."""
    seen = []

    class Spy:
        name, digest, layers = "spy", "", ("pixels",)

        def features(self, images, chosen):
            seen.append(images)
            return [op.avg_pool(images, [4, 4], [0, 0], [0, 0], [4, 4], False).output(0)]

    geometry = plan((0, 0, 64, 64), 4, 4)
    spec = FrameSpec(width=64, height=64, pixel_format="BGR8")
    reduction = padim.reduce_dimensions((3,), 3, "random", 0)
    model = compiled(feature_model(spec, geometry, Spy(), reduction, None))
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[..., 2] = 200
    assert np.array_equal(model([frame])[0][0], [200, 0, 0])


@pytest.mark.parametrize("locally_aware", [False, True])
def test_tiles_one_by_one_are_the_same_tiles(locally_aware):
    """In a loop and all together: the positions' order, and every number but for rounding."""
    backbone = open_backbone("bundled", None, None)
    steps, counts = strides(backbone, 1)
    geometry = plan((0, 0, 200, 136), min(steps), max(steps), tile=64, overlap=8)
    assert geometry.tiles > 4
    reduction = padim.reduce_dimensions(counts, 20, "semi-orthogonal", 0)
    spec = FrameSpec(width=200, height=136, pixel_format="Mono8")
    graphs = [
        feature_model(spec, geometry, backbone, reduction, None, locally_aware, one_by_one)
        for one_by_one in (False, True)
    ]
    assert [any(node.get_type_name() == LOOP for node in g.get_ops()) for g in graphs] == [False, True]
    frame = np.random.default_rng(0).integers(0, 256, (1, 136, 200, 1)).astype(np.uint8)
    together, looped = (compiled(graph)([frame])[0] for graph in graphs)
    assert together.shape == (geometry.positions, 20)
    assert np.allclose(looped, together, rtol=1e-4, atol=1e-4)


def test_shrinking_averages_so_that_fine_stripes_do_not_alias(tmp_path):
    class Pixels:
        name, digest, layers = "pixels", "", ("pixels",)

        def features(self, images, chosen):
            return [op.avg_pool(images, [1, 1], [0, 0], [0, 0], [1, 1], False).output(0)]

    geometry = plan((0, 0, 512, 512), 1, 1, resize=128)
    spec = FrameSpec(width=512, height=512, pixel_format="Mono8")
    model = compiled(
        feature_model(spec, geometry, Pixels(), padim.reduce_dimensions((1,), 1, "random", 0), None)
    )
    frame = np.zeros((1, 512, 512, 1), np.uint8)
    frame[:, ::2] = 200
    assert np.allclose(model([frame])[0], 100, atol=1)


def test_the_same_request_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        backbone = open_backbone("bundled", None, None)
        steps, counts = strides(backbone, 1)
        geometry = plan((0, 0, 64, 64), min(steps), max(steps))
        reduction = padim.reduce_dimensions(counts, 10, "random", 0)
        spec = FrameSpec(width=64, height=64, pixel_format="Mono8")
        model = feature_model(spec, geometry, backbone, reduction, None)
        ov.serialize(model, tmp_path / name / "m.xml")
    assert (tmp_path / "a" / "m.xml").read_bytes() == (tmp_path / "b" / "m.xml").read_bytes()
    assert (tmp_path / "a" / "m.bin").read_bytes() == (tmp_path / "b" / "m.bin").read_bytes()


def test_joining_in_the_graph_is_the_joiners_own(tmp_path):
    geometry = plan((0, 0, 300, 200), 4, 16, tile=96, overlap=32)
    valid = valid_cells(geometry, None)
    joiner = Joiner(geometry, valid, sigma_cells=1.0)
    cells = geometry.tiles * geometry.tile_grid[0] * geometry.tile_grid[1]
    entry = op.parameter([cells], ov.Type.f32)
    model = compiled(ov.Model([op.result(joined_map(entry.output(0), joiner))], [entry], "join"))
    distances = np.random.default_rng(0).random(cells).astype(np.float32)
    assert np.allclose(model([distances])[0], joiner(distances), rtol=1e-5, atol=1e-5)

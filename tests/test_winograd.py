"""Winograd's convolutions: the same numbers as OpenVINO's own, where they are faster and nowhere else."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate.graph import named
from calibrate.options import FitOptions
from calibrate.pieces import LOOP, in_blocks
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.winograd import OUTPUTS, Transforms, bf16_by_vectors, quickened
from inspectord.inspect import compile_model
from tests.helpers_recipe import write_good_frames


def kernels(after, before, side):
    values = np.random.default_rng(side).standard_normal((after, before, side, side))
    return (values / np.sqrt(before * side * side)).astype(np.float32)


def model(
    side,
    pads=(0, 0),
    shape=(1, 128, 37, 45),
    after=128,
    stride=1,
    dilation=1,
    weights=None,
    how="explicit",
    type_=ov.Type.f32,
):
    x = op.parameter(list(shape), type_)
    weights = op.constant(kernels(after, shape[1], side), dtype=type_) if weights is None else weights
    y = op.convolution(x, weights, [stride] * 2, list(pads), list(pads[::-1]), [dilation] * 2, how)
    return ov.Model([op.result(op.relu(y))], [x], "convolution")


def direct(graph):
    """Names of the convolutions with kernels larger than 1 x 1."""
    of = [node for node in graph.get_ops() if node.get_type_name() == "Convolution"]
    return [node.get_friendly_name() for node in of if max(node.input_value(1).get_shape()[2:]) > 1]


def unchanged(graph, precision="f32"):
    return direct(quickened(graph, precision)) == direct(graph) != []


@pytest.mark.parametrize(("side", "outputs"), sorted({(side, m) for (_, side), m in OUTPUTS.items()}))
def test_the_transforms_are_a_correlation(side, outputs):
    """Equation 5 of the paper in one dimension, in float64."""
    rng, by = np.random.default_rng(0), Transforms.of(side, outputs)
    kernel, patch = rng.standard_normal(side), rng.standard_normal(side + outputs - 1)
    found = by.outputs.T @ ((by.kernel @ kernel) * (by.patch @ patch))
    assert np.allclose(found, np.correlate(patch, kernel, "valid"), rtol=0, atol=1e-12)


PADDED = [(3, (0, 0)), (3, (1, 1)), (4, (0, 0)), (4, (2, 2)), (4, (1, 2))]


@pytest.mark.parametrize(
    ("side", "pads", "how"),
    [*((*each, "explicit") for each in PADDED), (4, (0, 0), "same_upper"), (4, (0, 0), "same_lower")],
)
def test_the_result_is_that_of_the_plain_convolution(side, pads, how):
    """Of sizes that patches don't divide, too; padding may differ between the ends or be OpenVINO's."""
    plain = model(side, pads, how=how)
    quick = quickened(plain, "f32")
    assert not direct(quick)
    assert direct(plain)  # the caller's graph stays
    x = np.random.default_rng(1).standard_normal(tuple(plain.inputs[0].shape)).astype(np.float32)
    expected, found = (compile_model(graph, "CPU", "f32", 2)([x])[0] for graph in (plain, quick))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * expected.max()


@pytest.mark.parametrize("side", [3, 4])
@pytest.mark.skipif(not bf16_by_vectors(), reason="this processor has no bf16, or a unit of its own for it")
def test_in_bf16_every_product_is_one_of_bf16_and_rounds_little(side):
    """A product whose first factor is a constant would be one of float32: broken on purpose so once. With the
    points of float32's 4 x 4 patches 4 x 4 kernels round by 3.6 %.
    """
    plain = model(side, shape=(1, 128, 64, 64), after=256)
    quick = quickened(plain, "bf16")
    assert not direct(quick)
    x = np.random.default_rng(1).standard_normal(tuple(plain.inputs[0].shape)).astype(np.float32)
    exact = compile_model(plain, "CPU", "f32", 2)([x])[0]
    compiled = compile_model(quick, "CPU", "bf16", 2)
    assert np.sqrt(np.mean((compiled([x])[0] - exact) ** 2)) < 0.025 * exact.std()
    run = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = [how for how in run if how["layerType"].astype(str) in ("MatMul", "FullyConnected")]
    assert [how["primitiveType"].astype(str) for how in products] == ["brgemm_avx512_bf16"] * 3


def test_in_bf16_only_what_gains_much_is_quickened(monkeypatch):
    wide = {"shape": (1, 128, 64, 64), "after": 256}
    monkeypatch.setattr("calibrate.winograd.bf16_by_vectors", lambda: True)
    assert not unchanged(model(3, **wide), "bf16")
    assert unchanged(model(3, shape=(1, 128, 64, 64)), "bf16")
    monkeypatch.setattr("calibrate.winograd.bf16_by_vectors", lambda: False)
    assert unchanged(model(3, **wide), "bf16")
    assert unchanged(model(3, **wide), "f16")


def test_loops_are_quickened_too():
    tiles = op.parameter([3, 128, 36, 36], ov.Type.f32)
    tile = op.parameter([1, 128, 36, 36], ov.Type.f32)
    each = op.convolution(tile, op.constant(kernels(128, 128, 4)), [1, 1], [0, 0], [0, 0], [1, 1]).output(0)
    looped = ov.Model([op.result(in_blocks([(tile, tiles.output(0))], each, 1))], [tiles], "tiles")
    quick = quickened(looped, "f32")
    before, body = (
        next(node for node in graph.get_ops() if node.get_type_name() == LOOP).get_function()
        for graph in (looped, quick)
    )
    assert not direct(body)
    assert direct(before)
    x = np.random.default_rng(1).standard_normal((3, 128, 36, 36)).astype(np.float32)
    expected, found = (compile_model(graph, "CPU", "f32", 2)([x])[0] for graph in (looped, quick))
    assert np.abs(found - expected).max() < 1e-5 * expected.max()


def test_what_gains_nothing_stays():
    x = op.parameter([1, 128, -1, 45], ov.Type.f32)
    open_ = op.convolution(x, op.constant(kernels(128, 128, 3)), [1, 1], [0, 0], [0, 0], [1, 1])
    assert unchanged(ov.Model([op.result(open_)], [x], "of any height"))
    eight_bits = op.convert(op.constant(np.ones((128, 128, 3, 3), np.int8)), ov.Type.f32)
    assert unchanged(model(3, after=64))
    assert unchanged(model(3, shape=(1, 64, 37, 45)))
    assert unchanged(model(3, shape=(1, 128, 18, 18)))
    assert not unchanged(model(3, shape=(1, 256, 18, 18), after=256))
    assert unchanged(model(3, shape=(1, 512, 16, 16), after=512))  # 14 x 14 cells for many kernels
    assert unchanged(model(3, shape=(2, 128, 37, 45)))
    assert unchanged(model(4, stride=2, shape=(1, 128, 90, 90)))
    assert unchanged(model(5))
    assert unchanged(model(3, shape=(1, 128, 270, 270)))
    assert unchanged(model(3, dilation=2))
    assert unchanged(model(3, weights=eight_bits))
    assert unchanged(model(3, type_=ov.Type.f16))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_good_frames(tmp_path_factory.mktemp("good"), range(12), width=512)


@pytest.mark.parametrize(
    ("changes", "looped", "quick"),
    [
        ({"resize": 256}, False, True),
        ({"tile": 256}, True, True),
        ({"tile": 256, "precision": "bf16"}, True, bf16_by_vectors()),
        ({"tile": 256, "precision": "int8"}, True, False),
        ({"tile": 256, "device": "GPU"}, False, False),
    ],
)
def test_fits_take_it_on_a_cpu(resnet, good, tmp_path, changes, looped, quick):
    """layer2 and layer3 are large enough at 256 pixels, in bf16 layer3 alone."""
    asked = FitOptions("flange", tmp_path, (good,), "padim", "resnet18", resnet, **changes)
    graph = prepare(asked, Silent()).graph
    loops = [node for node in graph.get_ops() if node.get_type_name() == LOOP]
    assert len(loops) == looped
    body = loops[0].get_function() if loops else graph
    assert (len(direct(body)) < 13) is quick  # of ResNet-18's first convolution and layer1 to layer3


def test_graphs_with_loops_have_the_same_bytes_whatever_was_built_before(resnet, good, tmp_path):
    asked = FitOptions("flange", tmp_path, (good,), "padim", "resnet18", resnet, tile=256)
    for name in ("a", "b"):
        ov.serialize(named(prepare(asked, Silent()).graph), tmp_path / f"{name}.xml")
        model(3)  # OpenVINO counts the nodes of a process
    assert (tmp_path / "a.xml").read_bytes() == (tmp_path / "b.xml").read_bytes()

"""The bundled network computes what was trained, stays close to it in eight bits, and checks its weights."""

from __future__ import annotations

import platform

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op
from safetensors.numpy import save_file

from benchmarks.lite_padim import multiply_adds
from calibrate.backbones import lite
from calibrate.backbones.lite import (
    JOINED,
    LAYERS,
    UNITS,
    Lite,
    fold_state,
    open_lite,
    state_shapes,
    with_ranges,
)
from calibrate.backbones.weights import random_state
from calibrate.graph import strides
from inspectord.errors import FitError

ALL = tuple(LAYERS)
FIRST, CHANNELS = JOINED[0], sum(JOINED)  # of joined, those from stage1 come first
SPREAD = np.random.default_rng(7).uniform(0.2, 3, CHANNELS).astype(np.float32)


def noise(channels=3, height=32, width=48, count=2):
    shape = (count, channels, height, width)
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("torch", reason="the bundled network is trained in torch")
    from calibrate.pretrain.network import Lite as Trained
    from tests.reference_networks import shaken

    return shaken(Trained(), seed=5)


@pytest.fixture(scope="module")
def folded(network):
    """Kernels and biases of the network and a spread, without ranges."""
    state = fold_state({name: tensor.numpy() for name, tensor in network.state_dict().items()})
    return state | {"joined.spread": SPREAD}


@pytest.fixture(scope="module")
def plain():
    """Random kernels and biases and a spread, without ranges."""
    state, rng = random_state(state_shapes(), 5), np.random.default_rng(6)
    biases = {name: rng.normal(0, 0.2, state[name].shape) for name in state if name.endswith(".bias")}
    state |= biases | {"joined.spread": SPREAD}
    return {name: value for name, value in state.items() if not name.endswith(".range")}


def in_eight_bits(state):
    grey = np.repeat(noise(1), 3, axis=1)
    return with_ranges(state, np.concatenate([noise(), grey]))


@pytest.fixture(scope="module")
def quantised(plain):
    return in_eight_bits(plain)


def model_of(backbone, shape, chosen=None):
    entry = op.parameter(list(shape), ov.Type.f32)
    maps = backbone.features(entry.output(0), chosen or [None] * len(backbone.layers))
    return ov.Model([op.result(m) for m in maps], [entry], "test")


def compiled(backbone, shape, chosen=None):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    return ov.Core().compile_model(model_of(backbone, shape, chosen), "CPU", settings)


def run(state, images, layers=ALL, chosen=None):
    """Maps by layer."""
    request = compiled(Lite(state, "", layers), images.shape, chosen).create_infer_request()
    request.infer([images])
    return {layer: tensor.data.copy() for layer, tensor in zip(layers, request.output_tensors, strict=True)}


def trained(network, images, spread):
    """Maps of a bundled network's layers, in its order, as torch computes them."""
    import torch

    with torch.no_grad():
        fine, middle = network(torch.from_numpy(images))
        halved = torch.nn.functional.avg_pool2d(fine, 2)
        joined = torch.cat([halved, middle], 1) / torch.from_numpy(spread)[:, None, None]
        pooled = torch.nn.functional.avg_pool2d(joined, 2)
    return fine.numpy(), joined.numpy(), middle.numpy(), pooled.numpy()


def close(found, expected):
    assert found.shape == expected.shape
    return np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(32, 48), (48, 80)])
def test_the_graph_computes_what_was_trained_at_any_multiple_of_its_stride(network, folded, size):
    images = noise(3, *size)
    expected = dict(zip(ALL, trained(network, images, SPREAD), strict=True))
    for layer, found in run(folded, images).items():
        assert close(found, expected[layer]), layer


def test_a_stride_of_four_is_enough_for_the_first_layer_alone(network, folded):
    import torch

    images = noise(3, 44, 60)
    with torch.no_grad():
        expected = network(torch.from_numpy(images))[0].numpy()
    assert close(run(folded, images, ("stage1",))["stage1"], expected)


def test_grey_is_three_equal_colours(network, folded):
    grey = noise(1)
    expected = dict(zip(ALL, trained(network, np.repeat(grey, 3, axis=1), SPREAD), strict=True))
    for layer, found in run(folded, grey).items():
        assert close(found, expected[layer]), layer


@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bits_stay_close_to_what_was_trained(network, folded, channels):
    images = noise(channels)
    shown = np.repeat(images, 3, axis=1) if channels == 1 else images
    expected = dict(zip(ALL, trained(network, shown, SPREAD), strict=True))
    for layer, found in run(in_eight_bits(folded), images).items():
        error = found - expected[layer]
        assert np.sqrt(np.mean(error**2)) <= 0.05 * expected[layer].std(), layer


def test_ranges_hold_what_the_images_reach_and_larger_values_are_cut(quantised):
    images = noise()
    reached = run(quantised, images, ("stage1",))["stage1"]
    limit = quantised["stage1.block.1.range"][None, :, None, None]
    assert np.all(reached <= limit * 1.0001)
    assert reached.max() > 0.9 * limit.max()
    narrow = quantised | {"stage1.block.1.range": quantised["stage1.block.1.range"] / 4}
    cut = run(narrow, images, ("stage1",))["stage1"]
    assert np.allclose(cut.max((0, 2, 3)), limit[0, :, 0, 0] / 4, rtol=1e-3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors may choose other kernels")
def test_all_convolutions_between_the_first_and_the_joining_ones_run_in_eight_bits(quantised):
    backbone = Lite(quantised, "", ("joined",))
    nodes = compiled(backbone, (1, 1, 64, 64)).get_runtime_model().get_ordered_ops()
    kinds = [n.get_rt_info() for n in nodes]
    convolutions = [k for k in kinds if k["layerType"].astype(str) == "Convolution"]
    eight = [k for k in convolutions if k["runtimePrecision"].astype(str) in ("i8", "u8")]
    assert (len(eight), len(convolutions)) == (6, 6 + 1 + 2)


@pytest.mark.parametrize("weights", ["plain", "quantised"])
@pytest.mark.parametrize(
    "joined",
    [[3, FIRST - 1, FIRST, CHANNELS - 1], [0, FIRST - 1], [FIRST, CHANNELS - 1]],
    ids=["of both stages", "of stage1 alone", "of stage2 alone"],
)
def test_chosen_channels_are_the_same_channels_of_the_whole_map(weights, joined, request):
    state, images = request.getfixturevalue(weights), noise()
    chosen = [np.array([1, 47]), np.array(joined), np.array([0, 95]), np.array(joined)]
    whole = run(state, images)
    for (layer, found), channels in zip(run(state, images, chosen=chosen).items(), chosen, strict=True):
        assert close(found, whole[layer][:, channels]), layer


def test_what_nothing_was_chosen_of_is_not_computed(quantised):
    for chosen, convolutions in ((0, 4 + 1), (CHANNELS - 1, 7 + 1)):
        model = model_of(Lite(quantised, "", None), (1, 3, 64, 64), [np.array([chosen])])
        assert [node.get_type_name() for node in model.get_ops()].count("Convolution") == convolutions


def test_the_work_at_256_pixels_is_below_five_hundred_million_multiply_adds(quantised):
    work = multiply_adds(model_of(Lite(quantised, "", None), (1, 3, 256, 256)))
    assert 400e6 < work < 500e6


def test_strides_and_channels_are_those_of_the_contract(quantised):
    assert strides(Lite(quantised, "", ALL), 1) == ((4, 8, 8, 16), (48, 144, 96, 144))
    assert Lite(quantised, "", None).layers == ("joined",)


@pytest.mark.parametrize("layers", [("stage3",), ("joined", "stage1"), ("stage1", "stage1")])
def test_layers_that_do_not_exist_or_are_out_of_order_are_refused(quantised, layers):
    with pytest.raises(FitError, match="some of stage1, joined, stage2, pooled in this order"):
        Lite(quantised, "", layers)


@pytest.fixture
def weights_file(tmp_path, monkeypatch):
    """A complete file in the package's place."""
    path = tmp_path / "lite.safetensors"
    ones = {f"{name}.range": np.ones(outputs) for name, (outputs, _, _) in UNITS.items()}
    state = random_state(state_shapes(), 0) | ones | {"joined.spread": np.ones(CHANNELS)}
    save_file({name: value.astype(np.float16) for name, value in state.items()}, path)
    monkeypatch.setattr(lite, "WEIGHTS", path)
    return path


def test_the_digest_is_that_of_the_files_bytes(weights_file):
    before = open_lite(None).digest
    assert open_lite(("stage1",)).digest == before
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    assert open_lite(None).digest != before


def test_half_precision_weights_are_computed_in_full_precision(weights_file):
    maps = model_of(open_lite(None), (1, 3, 64, 64))
    kinds = {node.get_element_type() for node in maps.get_ordered_ops() if node.get_type_name() == "Constant"}
    assert ov.Type.f16 not in kinds


@pytest.mark.parametrize("damage", [b"", b"not weights", None])
def test_missing_or_damaged_weights_are_one_clear_error(weights_file, damage):
    if damage is None:
        weights_file.unlink()
    else:
        weights_file.write_bytes(damage)
    with pytest.raises(FitError, match=r"bundled weights .*lite\.safetensors.*; install inspectord again"):
        open_lite(None)


@pytest.mark.parametrize(
    ("name", "shape"), [("stem.0.kernel", (16, 3, 3, 3)), ("stem.0.kernel", None), ("joined.spread", None)]
)
def test_weights_of_another_version_are_refused(weights_file, name, shape):
    shapes = {key: value for key, value in state_shapes().items() if key != name}
    save_file(random_state(shapes | ({name: shape} if shape else {}), 0), weights_file)
    with pytest.raises(FitError, match="not those of this version; install inspectord again"):
        open_lite(None)

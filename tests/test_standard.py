"""The bundled network in ResNet-18's layout computes what was trained, and checks its weights."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from safetensors.numpy import save_file

from calibrate.backbones import open_backbone, standard
from calibrate.backbones.standard import JOINED, LAYERS, Standard, open_standard, state_shapes
from calibrate.backbones.weights import random_state
from calibrate.graph import strides
from inspectord.errors import FitError
from inspectord.sources.parts import render_part
from tests.test_lite import close, compiled, model_of, noise, trained

SPREAD = np.random.default_rng(7).uniform(0.2, 3, sum(JOINED)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("torch", reason="the bundled network is trained in torch")
    from calibrate.pretrain.network import Standard as Trained
    from tests.reference_networks import shaken

    return shaken(Trained(), seed=5)


@pytest.fixture(scope="module")
def state(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()} | {"joined.spread": SPREAD}


def run(backbone, images, chosen=None):
    request = compiled(backbone, images.shape, chosen).create_infer_request()
    request.infer([images])
    return [tensor.data.copy() for tensor in request.output_tensors]


@pytest.mark.parametrize("size", [(32, 48), (48, 80)])
def test_the_graph_computes_what_was_trained_at_any_multiple_of_its_stride(network, state, size):
    images = noise(3, *size)
    for found, expected in zip(
        run(Standard("standard", state, "", LAYERS), images), trained(network, images, SPREAD), strict=True
    ):
        assert close(found, expected)


def test_grey_is_three_equal_colours(state):
    grey = noise(1)
    backbone = Standard("standard", state, "", None)
    assert close(run(backbone, grey)[0], run(backbone, np.repeat(grey, 3, axis=1))[0])


@pytest.mark.parametrize("chosen", [(0, 31, 32, 95), (40, 50), (3,)])
def test_only_the_chosen_channels_are_given(state, chosen):
    images, wanted, backbone = noise(), np.array(chosen), Standard("standard", state, "", None)
    (whole,), (some,) = (run(backbone, images, each) for each in ([None], [wanted]))
    assert close(some, whole[:, wanted])


def test_the_layers_have_their_strides_and_channels():
    for name in standard.WEIGHTS:
        backbone = open_backbone(name, None, LAYERS)
        assert strides(backbone, 1) == ((4, 8, 8, 16), (32, 96, 64, 96))
        assert backbone.name == name


def test_steady_is_another_network_that_changes_less_with_light():
    """Which is what it was made for: the same made-up parts at 85 % of the light."""
    parts = np.stack([render_part(1, number, 96, 96, 0.0).pixels for number in range(6)])
    images = np.repeat(parts.transpose(0, 3, 1, 2), 3, axis=1).astype(np.float32)
    moved = {}
    for name in standard.WEIGHTS:
        backbone = open_backbone(name, None, None)
        plain, dark = (run(backbone, images * np.float32(light))[0] for light in (1, 0.85))
        moved[name] = np.square(dark - plain).mean() / plain.var()
    assert moved["steady"] < 0.7 * moved["standard"]


def test_a_layer_that_nobody_reads_is_not_computed():
    def convolutions(layer):
        model = model_of(open_standard((layer,)), (1, 3, 64, 64))
        return sum(node.get_type_name() == "Convolution" for node in model.get_ordered_ops())

    assert convolutions("layer1") == 5
    assert convolutions("layer2") == 10


def test_the_weights_are_half_precise_and_computed_in_full():
    model = model_of(open_standard(None), (1, 3, 64, 64))
    kinds = {
        node.get_element_type() for node in model.get_ordered_ops() if node.get_type_name() == "Constant"
    }
    assert ov.Type.f16 not in kinds


@pytest.mark.parametrize("layers", [("stage1",), ("joined", "layer1"), ("layer1", "layer1")])
def test_unknown_or_disordered_layers_are_refused(layers):
    with pytest.raises(FitError, match="--layers of standard are some of layer1, joined, layer2, pooled"):
        open_standard(layers)


def test_damaged_weights_are_one_clear_error(tmp_path, monkeypatch):
    path = tmp_path / "standard.safetensors"
    path.write_bytes(b"not weights")
    monkeypatch.setattr(standard, "WEIGHTS", {"standard": path})
    with pytest.raises(FitError, match=r"standard\.safetensors are damaged.*; install inspectord again"):
        open_standard(None)


def test_weights_of_the_other_network_are_refused(tmp_path):
    shapes = {name: shape for name, shape in state_shapes().items() if name != "joined.spread"}
    save_file(random_state(shapes, 0), tmp_path / "w.safetensors")
    with pytest.raises(FitError, match=r"not weights of standard: missing joined\.spread"):
        open_standard(None, tmp_path / "w.safetensors")

"""Every named backbone computes what the published network computes, from the published files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op
from safetensors.numpy import save_file

from calibrate.backbones import open_backbone
from calibrate.backbones.resnet import LAYOUTS, state_shapes
from calibrate.backbones.weights import random_state
from inspectord.errors import FitError

torch = pytest.importorskip("torch", reason="the reference networks are written in torch")


def run(backbone, images, chosen=None):
    """Feature maps of images (n, c, h, w) through the backbone's OpenVINO form."""
    entry = op.parameter(list(images.shape), ov.Type.f32)
    maps = backbone.features(entry.output(0), chosen or [None] * len(backbone.layers))
    model = ov.Model([op.result(m) for m in maps], [entry], "test")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer([images])
    return [request.get_output_tensor(i).data.copy() for i in range(len(maps))]


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (2, 3, 64, 96)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"standard"}))
def test_a_resnet_computes_what_the_torch_network_computes(name, images, tmp_path):
    from tests.reference_networks import ResNet, normalised, shaken

    layout = LAYOUTS[name]
    network = shaken(ResNet(layout.blocks, layout.bottleneck, layout.width), seed=3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = open_backbone(name, tmp_path / "weights.pth", ("layer1", "layer3", "layer4"))
    with torch.no_grad():
        expected = network(normalised(images))
    for layer, found in zip(backbone.layers, run(backbone, images), strict=True):
        assert close(found, expected[layer].numpy()), layer


def test_mobilenet_computes_what_the_torch_network_computes(images, tmp_path):
    from tests.reference_networks import MobileNetV2, normalised, shaken

    network = shaken(MobileNetV2(), seed=4)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = open_backbone("mobilenet_v2", tmp_path / "weights.pth", None)
    with torch.no_grad():
        expected = network(normalised(images))
    for layer, found in zip(backbone.layers, run(backbone, images), strict=True):
        assert close(found, expected[layer].numpy()), layer


def test_chosen_channels_are_the_same_channels_of_the_whole_map(images, tmp_path):
    save_file(random_state(state_shapes("resnet18"), 0), tmp_path / "w.safetensors")
    backbone = open_backbone("resnet18", tmp_path / "w.safetensors", None)
    chosen = [np.array([1, 5]), np.array([0, 100]), np.array([3, 200, 255])]
    for found, whole, channels in zip(
        run(backbone, images, chosen), run(backbone, images), chosen, strict=True
    ):
        assert close(found, whole[:, channels])


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_network_from_a_file_gives_its_named_layers(suffix, images, tmp_path):
    entry = op.parameter([-1, 3, -1, -1], ov.Type.f32, name="image")
    kernel = op.constant(np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32))
    conv = op.convolution(entry, kernel, [2, 2], [1, 1], [1, 1], [1, 1])
    conv.set_friendly_name("first")
    second = op.relu(conv)
    second.set_friendly_name("second")
    path = tmp_path / f"net{suffix}"
    if suffix == ".onnx":
        _write_onnx(path, tmp_path)
    else:
        ov.serialize(ov.Model([op.result(second)], [entry], "net"), path)
    first, last = run(open_backbone(str(path), None, ("first", "second")), images)
    assert first.shape == (2, 4, 32, 48)
    assert np.array_equal(np.maximum(first, 0), last)


def _write_onnx(path: Path, folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["first"], "first", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["second"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("second", TensorProto.FLOAT, ["n", 4, "h2", "w2"])],
        [numpy_helper.from_array(kernel, "k")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


def test_missing_tensors_are_named(tmp_path):
    state = random_state(state_shapes("resnet18"), 0)
    del state["layer2.0.conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(FitError, match=r"missing layer2\.0\.conv1\.weight"):
        open_backbone("resnet18", tmp_path / "w.safetensors", None)


def test_weights_of_another_network_are_refused_by_shape(tmp_path):
    save_file(random_state(state_shapes("wide_resnet50_2"), 0), tmp_path / "w.safetensors")
    with pytest.raises(FitError, match="has shape"):
        open_backbone("resnet50", tmp_path / "w.safetensors", None)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_a_damaged_weights_file_is_a_clear_error(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(FitError, match="w" + suffix):
        open_backbone("resnet18", path, None)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"conv1.weight": Evil()}))
    with pytest.raises(FitError):
        open_backbone("resnet18", path, None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["resnet19", "vit"])
def test_an_unknown_backbone_lists_the_known_ones(name):
    with pytest.raises(FitError, match="wide_resnet50_2"):
        open_backbone(name, None, None)


@pytest.mark.parametrize(("layer", "cell"), [("joined", 8), ("pooled", 16)])
def test_the_bundled_network_sees_a_scratch_more_than_another_exposure(layer, cell):
    backbone = open_backbone("bundled", None, (layer,))
    plain = np.random.default_rng(0).normal(100, 4, (1, 1, 64, 64)).astype(np.float32)
    scratched = plain.copy()
    scratched[:, :, 30:32, 8:56] += 40
    before, brighter, after = (run(backbone, x)[0] for x in (plain, plain * 1.1, scratched))
    far = np.linalg.norm(after - before, axis=1)[0]
    struck = far[:, 16 // cell : 48 // cell].max(axis=0)  # the scratch lies at two cells' common edge
    assert struck.min() > 3 * far[0].max()
    assert struck.min() > 2 * np.linalg.norm(brighter - before, axis=1).max()

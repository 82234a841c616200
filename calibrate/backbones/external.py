"""Any ONNX or OpenVINO feature extractor, by the names of its layers."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from calibrate.backbones import Chosen
from calibrate.backbones.weights import kept, normalised
from inspectord.errors import FitError
from inspectord.recipe import file_hash


class External:
    """A network with one (n, 3, height, width) input, normalised as for ImageNet, and named layers."""

    def __init__(self, path: Path, layers: tuple[str, ...] | None) -> None:
        if not path.is_file():
            raise FitError(f"no backbone file at {path}")
        if not layers:
            raise FitError(
                f"a backbone from a file needs --layers NAME,NAME; {path.name} has: {_names(path)}"
            )
        self.name, self.layers, self._path = path.name, layers, path
        self.digest = file_hash(path)
        if path.suffix == ".xml":
            self.digest += "+" + file_hash(path.with_suffix(".bin"))
        _outputs(_read(path), layers, path)

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        model, x = _read(self._path), normalised(images)
        if len(model.inputs) != 1:
            raise FitError(f"{self._path.name} has {len(model.inputs)} inputs; a backbone has one")
        try:
            model.reshape(x.get_partial_shape())
        except RuntimeError as error:
            shape = x.get_partial_shape()
            raise FitError(
                f"{self._path.name} does not take images of shape {shape}; choose --tile"
            ) from error
        outputs = _outputs(model, self.layers, self._path)
        model.inputs[0].replace(x)
        return [kept(output, channels) for output, channels in zip(outputs, chosen, strict=True)]


def _read(path: Path) -> ov.Model:
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise FitError(f"{path} is no readable ONNX or OpenVINO model; export it again") from error


def _outputs(model: ov.Model, layers: tuple[str, ...], path: Path) -> list[ov.Output]:
    found: dict[str, ov.Output] = {}
    for node in model.get_ordered_ops():
        for output in node.outputs():
            for name in {node.get_friendly_name(), *output.get_names()} & set(layers):
                found.setdefault(name, output)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        raise FitError(f"{path.name} has no layer {', '.join(missing)}; it has: {_names(path)}")
    return [found[layer] for layer in layers]


def _names(path: Path) -> str:
    kinds = ("Convolution", "Relu", "Add", "Clamp")
    names = [n.get_friendly_name() for n in _read(path).get_ordered_ops() if n.get_type_name() in kinds]
    return ", ".join(names[-30:])

"""The teachers: patch description networks, bundled or from a file, or the backbone as the recipe runs it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from torch import Tensor, nn

from calibrate.backbones.lite import Lite, open_lite
from calibrate.backbones.weights import State, own_or_bundled
from calibrate.efficientad import lite, networks
from calibrate.efficientad.translate import translated
from inspectord.errors import FitError
from inspectord.inspect import compile_model

BUNDLED = files("calibrate.efficientad") / "teacher_small_v1.safetensors"
PDN = {"efficientad-s": networks.pdn_small, "efficientad-m": networks.pdn_medium}


class Teacher(Protocol):
    """A frozen network; digest is a SHA-256 of its weights."""

    name: str
    layer: str
    digest: str
    channels: int

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, channels, rows, columns) of images (n, 1 or 3, height, width), 0..255."""
        ...

    def to(self, device: torch.device) -> Teacher: ...

    def build(self, images: ov.Output) -> ov.Output:
        """The same in the recipe's graph."""
        ...


class PdnTeacher(nn.Module):
    """A patch description network."""

    channels = networks.TEACHER

    def __init__(self, kind: str, state: State, digest: str) -> None:
        super().__init__()
        self.name, self.layer, self.digest = f"teacher of {kind}", "last", digest
        self.network = PDN[kind](networks.TEACHER)
        _load(self.network, state, kind)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features

    def build(self, images: ov.Output) -> ov.Output:
        return translated(self.network, images)


class LiteTeacher:
    """The lite backbone's joined layer, by OpenVINO: quantised as in the recipe, so nothing has to be
    emulated, and several times as fast as torch on a CPU.
    """

    layer, channels = "joined", lite.TEACHER

    def __init__(self, backbone: Lite, threads: int) -> None:
        self.name, self.digest = backbone.name, backbone.digest
        self._backbone, self._threads = backbone, threads
        self._compiled: dict[tuple[int, ...], ov.InferRequest] = {}

    def __call__(self, images: Tensor) -> Tensor:
        request = self._request(tuple(images.shape[1:]))
        found = []
        for image in images.cpu():
            request.infer([image.numpy()[None]])
            found.append(torch.from_numpy(request.get_output_tensor(0).data.copy()))
        return torch.cat(found).to(images.device)

    def __getstate__(self) -> dict[str, Any]:
        """What is compiled is of one process."""
        return vars(self) | {"_compiled": {}}

    def to(self, device: torch.device) -> Teacher:
        """Stays where it is; its features follow the images."""
        return self

    def build(self, images: ov.Output) -> ov.Output:
        return self._backbone.features(images, [None])[0]

    def _request(self, shape: tuple[int, ...]) -> ov.InferRequest:
        if shape not in self._compiled:
            images = op.parameter([1, *shape], ov.Type.f32)
            model = ov.Model([op.result(self.build(images.output(0)))], [images], "teacher")
            self._compiled[shape] = compile_model(model, "CPU", "f32", self._threads).create_infer_request()
        return self._compiled[shape]


def open_teacher(kind: str, weights: Path | None, threads: int) -> Teacher:
    """The teacher of a model kind. Raises FitError where its weights are missing, or not its own."""
    if kind not in PDN:
        return LiteTeacher(open_lite(("joined",), weights), threads)
    if weights is None and kind == "efficientad-m":
        raise FitError(
            "--model efficientad-m needs --weights FILE with its teacher, as in teacher_medium.pth of the "
            "common implementations; efficientad-s and efficientad-lite need none"
        )
    state, digest = own_or_bundled(kind, weights, BUNDLED, {})
    return PdnTeacher(kind, state, digest)


def _load(network: nn.Sequential, state: State, kind: str) -> None:
    """Take `0.weight` and so on by place, or anomalib's `conv1.weight` and so on by number."""
    places = [place for place, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    numbered = all(name.startswith("conv") for name in state)
    names = [f"conv{number}" for number in range(1, 1 + len(places))] if numbered else None
    wanted = {}
    for number, place in enumerate(places):
        # Ours begins with the normalisation, which the common files leave to their loaders.
        name = names[number] if names else str(place - 1)
        for part in ("weight", "bias"):
            wanted[f"{name}.{part}"] = getattr(network[place], part)
    wrong = [
        name
        for name, value in wanted.items()
        if name not in state or tuple(state[name].shape) != tuple(value.shape)
    ]
    if wrong or len(state) != len(wanted):
        told = f"{wrong[0]} is missing or of another shape" if wrong else "they hold more than that network"
        raise FitError(
            f"these are not weights of the teacher of {kind}: {told}; give a teacher_small.pth for "
            "efficientad-s, a teacher_medium.pth for efficientad-m"
        )
    if not all(np.isfinite(state[name]).all() for name in wanted):
        raise FitError(f"the weights of the teacher of {kind} are not finite; get the file again")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(torch.from_numpy(np.asarray(state[name], np.float32)))

"""State dicts from the user's files, and what is built from them: convolutions with folded batch norm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op
from safetensors import SafetensorError
from safetensors.numpy import load, load_file

from inspectord.errors import FitError
from inspectord.inspect import Floats
from inspectord.recipe import file_hash

State: TypeAlias = Mapping[str, npt.NDArray[np.floating]]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406]) * 255
IMAGENET_STD = np.array([0.229, 0.224, 0.225]) * 255
BATCH_NORM_EPSILON = 1e-5


def read_state(path: Path) -> tuple[State, str]:
    """Tensors by name and the file's SHA-256. Raises FitError with the next step."""
    if not path.is_file():
        raise FitError(f"no weights at {path}; give a .pth or .safetensors file with --weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path), file_hash(path)
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path), file_hash(path)
    raise FitError(f"{path}: weights must be a .pth or .safetensors file")


def own_or_bundled(
    name: str, own: Path | None, bundled: Traversable, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[State, str]:
    """Tensors and SHA-256 of the user's file, or where there is none of the package's.

    Raises FitError where it is missing, damaged or without the tensors that shapes names.
    """
    if own is None:
        return read_bundled(bundled, shapes)
    state, digest = read_state(own)
    require(state, shapes, name)
    return state, digest


def read_bundled(file: Traversable, shapes: Mapping[str, tuple[int, ...]]) -> tuple[State, str]:
    """Tensors of one of the package's own files and its SHA-256.

    Raises FitError where the file is missing, damaged or without the tensors that shapes names.
    """
    again = "install inspectord again"
    try:
        content = file.read_bytes()
        state: State = load(content)
    except OSError as error:
        raise FitError(f"the bundled weights {file} cannot be read: {error}; {again}") from error
    except SafetensorError as error:
        raise FitError(f"the bundled weights {file} are damaged: {error}; {again}") from error
    if any(name not in state or state[name].shape != shape for name, shape in shapes.items()):
        raise FitError(f"the bundled weights {file} are not those of this version; {again}")
    return state, hashlib.sha256(content).hexdigest()


def _read_safetensors(path: Path) -> State:
    try:
        state: State = load_file(path)
    except (SafetensorError, OSError) as error:
        raise FitError(f"{path} is no readable .safetensors file: {error}; get it again") from error
    return state


def _read_torch(path: Path) -> State:
    try:
        import torch
    except ImportError as error:
        raise FitError(
            f"reading {path} needs torch: `pip install 'inspectord[train]'`, or convert it to .safetensors"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; all mean the same to the user
        first = str(error).splitlines()[0]
        raise FitError(f"{path} is no readable state dict: {first}; get it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {key: value.float().numpy() for key, value in state.items() if hasattr(value, "numpy")}


def require(state: State, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise FitError naming missing or misshapen tensors."""
    missing = [key for key in shapes if key not in state]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FitError(
            f"these are not weights of {name}: missing {', '.join(missing[:5])}{more}; "
            "use torchvision's file for it, or what calibrate pretrain made for lite or standard"
        )
    for key, shape in shapes.items():
        if tuple(state[key].shape) != shape:
            raise FitError(f"weights of {name}: {key} has shape {tuple(state[key].shape)}, needs {shape}")


def norm_shapes(at: str, channels: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a batch norm in evaluation."""
    return {f"{at}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Floats]:
    """Random weights (He initialisation, identity norms) for tests and benchmarks; they detect little."""
    rng, state = np.random.default_rng(seed), {}
    for key, shape in shapes.items():
        if len(shape) == 4:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            value = np.ones(shape) if key.endswith(("weight", "running_var")) else np.zeros(shape)
        state[key] = value.astype(np.float32)
    return state


def folded(
    state: State, conv: str, norm: str, keep: npt.NDArray[np.int64] | None = None
) -> tuple[Floats, Floats]:
    """Kernel and bias of a convolution with its batch norm folded in, for the output channels kept."""
    kernel = np.asarray(state[f"{conv}.weight"], np.float64)
    gamma, beta, mean, variance = (
        np.asarray(state[f"{norm}.{key}"], np.float64)
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    kernel, bias = kernel * scale[:, None, None, None], beta - mean * scale
    if keep is not None:
        kernel, bias = kernel[keep], bias[keep]
    return kernel.astype(np.float32), bias.astype(np.float32)


def convolve(
    x: ov.Output,
    kernel: Floats,
    bias: Floats | None,
    stride: int,
    groups: int = 1,
) -> ov.Output:
    """Convolution of odd kernels with zero padding; kernel (out, in / groups, k, k)."""
    pad = [kernel.shape[2] // 2, kernel.shape[3] // 2]
    if groups > 1:
        kernel = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])
        y = op.group_convolution(x, op.constant(kernel), [stride] * 2, pad, pad, [1, 1]).output(0)
    else:
        y = op.convolution(x, op.constant(kernel), [stride] * 2, pad, pad, [1, 1]).output(0)
    return y if bias is None else op.add(y, op.constant(bias[None, :, None, None])).output(0)


def normalised(images: ov.Output) -> ov.Output:
    """ImageNet's normalisation; a grey image is taken as three equal colours."""
    mean = IMAGENET_MEAN.astype(np.float32)[None, :, None, None]
    scale = (1 / IMAGENET_STD).astype(np.float32)[None, :, None, None]
    return op.multiply(op.subtract(images, op.constant(mean)), op.constant(scale)).output(0)


def kept(x: ov.Output, channels: npt.NDArray[np.int64] | None, gain: Floats | None = None) -> ov.Output:
    """Some channels of x (None: all), times the gain of each of x's, by a convolution that is zero elsewhere:
    exact, and unlike a gather it leaves the memory layout that OpenVINO chose (measured: 0.1 ms instead of
    0.9 ms after layer1 of ResNet-18).
    """
    if channels is None and gain is None:
        return x
    diagonal = np.eye(x.get_shape()[1], dtype=np.float32) if gain is None else np.diag(gain)
    kernel = diagonal[slice(None) if channels is None else channels][:, :, None, None]
    return convolve(x, np.ascontiguousarray(kernel), None, stride=1)

"""A torch network as nodes of the recipe's graph: the few kinds of layer that EfficientAD's networks have."""

from __future__ import annotations

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from torch import Tensor, nn

from calibrate.backbones.weights import folded
from calibrate.efficientad.networks import Normalise
from calibrate.pieces import bilinear
from calibrate.pretrain.network import Block, Down, Unit
from inspectord.inspect import Floats


def translated(module: nn.Module, x: ov.Output) -> ov.Output:
    """What the module gives of x in evaluation. Raises TypeError for a layer that has no counterpart here."""
    match module:
        case nn.Sequential():
            for layer in module:
                x = translated(layer, x)
            return x
        case Normalise():
            centred = op.subtract(x, op.constant(numbers(module.mean[None])))
            return op.multiply(centred, op.constant(numbers(module.gain[None]))).output(0)
        case nn.Conv2d():
            return _convolved(x, numbers(module.weight), numbers(module.bias), module)
        case Unit():
            return _unit(module, x)
        case Block():
            return _block(module, x)
        case nn.ReLU():
            return op.relu(x).output(0)
        case nn.AvgPool2d():
            side = [module.kernel_size] * 2
            return op.avg_pool(x, side, [0, 0], [0, 0], side, False).output(0)
        case nn.Upsample():
            return bilinear(x, *module.size)
        case nn.Dropout():
            return x
    raise TypeError(f"no counterpart in OpenVINO for {type(module).__name__}")


def in_halves(network: nn.Sequential, x: ov.Output) -> list[ov.Output]:
    """What a network that ends in a convolution gives, the first and the second half of its channels.

    As two convolutions: a split costs a reordering of all channels.
    """
    last = network[-1]
    before = translated(network[:-1], x)
    kernels, biases = (np.split(numbers(part), 2) for part in (last.weight, last.bias))
    return [_convolved(before, kernel, bias, last) for kernel, bias in zip(kernels, biases, strict=True)]


def numbers(tensor: Tensor) -> Floats:
    values: Floats = tensor.detach().cpu().to(torch.float32).contiguous().numpy()
    return values


def _unit(unit: Unit, x: ov.Output) -> ov.Output:
    state = {name: value.detach().cpu().numpy() for name, value in unit.state_dict().items()}
    kernel, bias = folded(state, "conv", "norm")
    return _convolved(x, kernel, bias, unit.conv)


def _block(block: Block, x: ov.Output) -> ov.Output:
    if isinstance(block, Down):
        x = op.relu(_unit(block.down, x)).output(0)
    first, second = block.block
    y = _unit(second, op.relu(_unit(first, x)).output(0))
    return op.relu(op.add(x, y)).output(0)


def _convolved(x: ov.Output, kernel: Floats, bias: Floats, layer: nn.Conv2d) -> ov.Output:
    ends, kernel = list(layer.padding), np.ascontiguousarray(kernel)
    y = op.convolution(x, op.constant(kernel), list(layer.stride), ends, ends, [1, 1])
    return op.add(y, op.constant(bias[None, :, None, None])).output(0)

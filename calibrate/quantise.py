"""Eight bits for a network: post-training quantisation of a feature graph on good frames (by NNCF).

Convolutions and products with fixed weights compute in 8 bits. What comes before the first and behind the
last of them stays in floating point: the normalisation of pixels, and the small differences between large
numbers that anomaly maps are made of. What is in 8 bits already stays as it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.light import EVENED
from calibrate.pieces import LOOP
from calibrate.quantise_loops import QUANTISED, Reached, compiled, in_loop, loops, set_range
from inspectord.errors import FitError
from inspectord.frame import Pixels

Precision: TypeAlias = Literal["f32", "bf16", "f16"]

WEIGHTED = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
}
STORED = {"Convert", "Multiply", "Subtract", "Reshape", QUANTISED}  # between weights and what uses them
ALREADY = 0.5  # of the work in 8 bits: then the network is as it should be
REST: tuple[Precision, ...] = ("bf16", "f16")  # of what stays in floating point; the first that can be had
CAPABILITY = {"bf16": "BF16", "f16": "FP16"}  # OpenVINO's words


def quantised(model: ov.Model, frames: Sequence[Pixels]) -> ov.Model:
    """A copy of the model, frame in, whose weighted layers compute in 8 bits.

    frames, uint8 (height, width, channels), are good ones: what activations reach on them, on average, is the
    range of 8 bits. Wider ones lost more in steps than they won in what is cut off (measured: AUROC 0.78 with
    defects among the frames, 0.82 without, 0.84 in f32). But of the pixels themselves nothing is cut off.
    Raises FitError where NNCF is missing, or nothing in the graph can be quantised.
    """
    require_nncf()
    found = model.clone()
    for loop in loops(found):
        if _works(loop):
            in_loop(found, loop, frames, _in_8_bits, _of_pixels)
    if _has_weighted(found):
        found = _in_8_bits(found, range(len(frames)), lambda number: frames[number][None])
    if share_in_8_bits(found) <= share_in_8_bits(model):
        raise FitError("nothing in this network can be computed in 8 bits; use --precision bf16 or f32")
    return found


def _in_8_bits(model: ov.Model, numbers: Sequence[int], read: Callable[[int], Any]) -> ov.Model:
    """A copy of the model by NNCF, which asks it with what is read for each number and looks into no loop."""
    # Read when it is imported: else NNCF tells its makers, over the network, of every use.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its bars
        found: ov.Model = nncf.quantize(
            model,
            nncf.Dataset(numbers, read),
            subset_size=len(numbers),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=sorted(in_float(model)), validate=False),
        )
    _take_every_pixel(found, _names(model, QUANTISED))
    return found


def _take_every_pixel(model: ov.Model, known: set[str]) -> None:
    """Widen what pixels are rounded to, where that is new, from the range of good frames to that of all."""
    ends = _of_pixels(model)
    for node in model.get_ordered_ops():
        if node.get_friendly_name() in ends - known:
            set_range(node, _range_of(model, node.get_friendly_name()))


def _of_pixels(model: ov.Model) -> set[str]:
    """Names of the nodes that round to 8 bits what is but scaled pixels."""
    _, ends = _reached(model.get_parameters(), _readers)
    return ends & _names(model, QUANTISED)


def _range_of(model: ov.Model, name: str) -> Reached:
    """What a node takes in, of a black frame and of a white one: nothing but scaling lies before it, and the
    light that frames are brought to, which is left out, for it leaves no pixel beyond black and white.
    """
    copy = model.clone()
    node = next(node for node in copy.get_ordered_ops() if node.get_friendly_name() == name)
    entries = copy.get_parameters()
    if evened := [o for each in copy.get_ordered_ops() for o in each.outputs() if EVENED in o.get_names()]:
        entries = [op.parameter(evened[0].get_shape(), ov.Type.f32)]
        for reader in evened[0].get_target_inputs():
            reader.replace_source_output(entries[0].output(0))
    before = ov.Model([op.result(node.input_value(0))], entries, "pixels")
    shape, kind = before.inputs[0].get_shape(), before.inputs[0].get_element_type().to_dtype()
    request = compiled(before)
    found = [np.array(request.infer([np.full(shape, level, kind)])[0]) for level in (0, 255)]
    return Reached(np.min(found).astype(np.float32), np.max(found).astype(np.float32))


def _names(model: ov.Model, kind: str) -> set[str]:
    return {node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == kind}


def require_nncf() -> None:
    """Raises FitError where NNCF is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise FitError(
            "--precision int8 needs nncf: `pip install 'inspectord[int8]'`, or use --precision bf16"
        )


def rest_precision(bearable: Iterable[str], device: str) -> Precision:
    """What stays in floating point computes in this: half precision where the model kind bears it and the
    device has it, for the statistics' traffic is then halved, else f32.
    """
    try:
        can = ov.Core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError:  # no such device: compiling for it will say so
        return "f32"
    return next((p for p in REST if p in set(bearable) and CAPABILITY[p] in can), "f32")


def share_in_8_bits(model: ov.Model) -> float:
    """Share of the multiply-adds of all weighted layers, 0 to 1, whose weights are in 8 bits."""
    work = _work(model)
    return work[True] / max(1, sum(work.values()))


def _work(model: ov.Model) -> dict[bool, float]:
    """Multiply-adds in 8 bits and in floating point, of a loop as often as it runs."""
    work = {True: 0.0, False: 0.0}
    for node in model.get_ordered_ops():
        if _is_weighted(node):
            work[_is_quantised(node)] += _multiply_adds(node)
    for loop in loops(model):
        for how, inside in _work(loop.get_function()).items():
            work[how] += inside * loop.get_num_iterations()
    return work


def _has_weighted(model: ov.Model) -> bool:
    return any(_is_weighted(node) for node in model.get_ordered_ops())


def in_float(model: ov.Model) -> set[str]:
    """Names of the nodes that are not to be quantised, or are already."""
    done = [node for node in model.get_ordered_ops() if node.get_type_name() == QUANTISED]
    before, _ = _reached(model.get_parameters(), _readers)
    behind, _ = _reached([*model.get_results(), *done], _sources)
    already, readers = _reached(done, _readers)
    return before | behind | already | readers


def _reached(starts: Iterable[Any], following: Callable[[Any], list[Any]]) -> tuple[set[str], set[str]]:
    """Names of the nodes between starts and the next weighted or quantised ones or loops, and of these."""
    between: set[str] = set()
    ends: set[str] = set()
    waiting = list(starts)
    while waiting:
        for node in following(waiting.pop()):
            name = node.get_friendly_name()
            if _is_weighted(node) or node.get_type_name() == QUANTISED or _works(node):
                ends.add(name)
            elif name not in between:
                between.add(name)
                waiting.append(node)
    return between, ends


def _sources(node: Any) -> list[Any]:
    return [value.get_node() for value in node.input_values()]


def _readers(node: Any) -> list[Any]:
    return [port.get_node() for output in node.outputs() for port in output.get_target_inputs()]


def _is_weighted(node: Any) -> bool:
    return node.get_type_name() in WEIGHTED and _is_fixed(node.input_value(1).get_node())


def _works(node: Any) -> bool:
    """It is a loop with weighted nodes in it."""
    return node.get_type_name() == LOOP and _has_weighted(node.get_function())


def _is_fixed(node: Any) -> bool:
    """It is a constant, or a constant as it is stored: converted, scaled or rounded to 8 bits."""
    while node.get_type_name() in STORED:
        node = _sources(node)[0]
    return bool(node.get_type_name() == "Constant")


def _is_quantised(weighted: Any) -> bool:
    """Its weights are stored as, or rounded to, 8 bits."""
    node = weighted.input_value(1).get_node()
    while node.get_type_name() in STORED - {QUANTISED}:
        node = _sources(node)[0]
    return node.get_type_name() == QUANTISED or bool(node.get_element_type().bitwidth == 8)


def _multiply_adds(node: Any) -> float:
    """Of a weighted node: every value that goes in, or comes out, meets one output's weights."""
    name, values = node.get_type_name(), node.output(0)
    weights = [int(size) for size in node.input_value(1).get_shape()]
    if name == "MatMul":
        weights = [1, int(node.input_value(0).get_shape()[-1])]
    if name.startswith("Group"):
        weights = weights[1:]
    if "Backprop" in name:
        values = node.input_value(0)
    return math.prod(map(float, values.get_shape())) * math.prod(weights[1:])

"""The Gaussians of PaDiM in fewer bits: what OpenVINO makes of matrices in 8 bits instead of bf16.

    python -m benchmarks.gaussians_in_8_bits [--positions 4096] [--dimensions 100] [--threads 1] [--json FILE]

The same random triangular factors, in bands as `calibrate fit` cuts them, as distances at every position:

- f32, bf16: the product as recipes hold it;
- product: matrices in 8 bits with a scale a row, patches rounded to 8 bits over their own largest value, and
  OpenVINO's product of 8-bit numbers, in bands of 64 rows, which its kernels pad to in any case;
- loop: matrices in 8 bits, unpacked to floats block by block in the cache.

All take turns. Beside the time: the largest difference to f32, relative.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from benchmarks._common import finish, new_report, table
from benchmarks.anomalib_padim import take_turns
from calibrate.heads import LOOP_BYTES, Band, bands, columns_of, root, sum_of_squares
from calibrate.pieces import in_blocks, largest_divisor

HIGHEST = np.float32(127)


def band(matrices: np.ndarray, cut: Band) -> np.ndarray:
    """(positions, rows, columns) of matrices (positions, d, d), which are zero right of it."""
    return np.ascontiguousarray(matrices[:, cut.start : cut.stop, : cut.stop])


def rounded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In 8 bits, and the scale of each row (positions, 1, rows)."""
    scale = np.abs(values).max(2) / HIGHEST
    return np.rint(values / scale[..., None]).astype(np.int8), scale[:, None]


def columns(rows: ov.Output, cut: Band) -> ov.Output:
    return columns_of(rows, 0, cut.stop)


def distance(products: list[ov.Output]) -> ov.Output:
    return root([sum_of_squares(y) for y in products])


def plain(rows: ov.Output, matrices: np.ndarray, cuts: list[Band]) -> ov.Output:
    constants = [op.constant(band(matrices, cut)) for cut in cuts]
    pairs = zip(cuts, constants, strict=True)
    return distance(
        [op.matmul(columns(rows, cut), constant, False, True).output(0) for cut, constant in pairs]
    )


def product(rows: ov.Output, matrices: np.ndarray, cuts: list[Band]) -> ov.Output:
    largest = op.maximum(op.reduce_max(op.abs(rows), op.constant([2]), True), op.constant(np.float32(1e-6)))
    ends = [op.constant(np.float32(end)) for end in (-1, 1, -1, 1)]
    patches = op.fake_quantize(op.divide(rows, largest), *ends, 255).output(0)
    found = []
    for cut in cuts:
        bits, scale = rounded(band(matrices, cut))
        matrix = op.multiply(op.convert(op.constant(bits), ov.Type.f32), op.constant(1 / HIGHEST))
        whole = op.matmul(columns(patches, cut), matrix, False, True)
        found.append(op.multiply(whole, op.constant(scale * HIGHEST)).output(0))
    return op.multiply(distance(found), op.reshape(largest, op.constant([-1]), False)).output(0)


def loop(rows: ov.Output, matrices: np.ndarray, cuts: list[Band]) -> ov.Output:
    positions, _, dimensions = rows.get_shape()
    block = largest_divisor(positions, max(32, LOOP_BYTES // (4 * dimensions * dimensions)))
    inside = op.parameter([block, 1, dimensions], ov.Type.f32)
    inputs, found = [(inside, rows)], []
    for cut in cuts:
        bits, scale = rounded(band(matrices, cut))
        wholes = [op.constant(bits), op.constant(scale)]
        packed, by = (op.parameter([block, *each.shape[1:]], each.dtype) for each in (bits, scale))
        inputs += [(packed, wholes[0].output(0)), (by, wholes[1].output(0))]
        whole = op.matmul(columns(inside.output(0), cut), op.convert(packed, ov.Type.f32), False, True)
        found.append(op.multiply(whole, by).output(0))
    return in_blocks(inputs, distance(found), block)


def request(form: Any, hint: str, matrices: np.ndarray, cuts: list[Band], threads: int) -> ov.InferRequest:
    positions, dimensions, _ = matrices.shape
    entry = op.parameter([positions, 1, dimensions], ov.Type.f32)
    model = ov.Model([op.result(form(entry.output(0), matrices, cuts))], [entry], form.__name__)
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    return ov.Core().compile_model(model, "CPU", settings).create_infer_request()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The Gaussians of PaDiM in f32, bf16 and 8 bits.")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--dimensions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report = new_report()
    d = args.dimensions
    usual = bands(d, packed=False)
    padded = [Band(start, min(start + 64, d)) for start in range(0, d, 64)]
    forms = {
        "f32": (plain, "f32", usual),
        "bf16": (plain, "bf16", usual),
        "product": (product, "bf16", padded),
        "loop": (loop, "f32", usual),
    }
    rng = np.random.default_rng(0)
    matrices = np.tril(rng.standard_normal((args.positions, d, d), dtype=np.float32))
    requests = {
        name: request(form, hint, matrices, cuts, args.threads) for name, (form, hint, cuts) in forms.items()
    }
    patches = rng.standard_normal((args.positions, 1, d), dtype=np.float32)
    durations = take_turns(list(requests.values()), [patches] * len(requests), 5, args.rounds)
    times = dict(zip(requests, np.percentile(durations, (50, 10, 90), axis=0).T.tolist(), strict=True))
    found = {name: np.array(each.get_output_tensor().data) for name, each in requests.items()}
    apart = {name: float(np.abs(each / found["f32"] - 1).max()) for name, each in found.items()}
    table(("matrices, ms", "median", "p10", "p90", "apart"), [(n, *times[n], apart[n]) for n in requests])
    finish(report | {"ms": times, "apart": apart}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

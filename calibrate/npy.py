""".npy files larger than memory, written and read a few rows at a time; any numpy can look into them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inspectord.errors import FitError


class RowWriter:
    """A file of an array of this shape, whose rows arrive in order."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        about = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, about)

    def write(self, rows: npt.NDArray[np.generic]) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path, start: int, count: int) -> npt.NDArray[np.float64]:
    """Rows start to start + count, as float64. Raises FitError where the file holds fewer."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        each = math.prod(shape[1:])
        file.seek(start * each * dtype.itemsize, 1)
        values = np.fromfile(file, dtype, count * each)
    if len(values) != count * each:
        raise FitError(f"{path} ends early; restore the recipe, or fit again from all good frames")
    return np.asarray(values.reshape(count, *shape[1:]), np.float64)

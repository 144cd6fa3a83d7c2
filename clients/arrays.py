"""Pack named arrays into Flower's records, and read them where they lie."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray


def weights_record(weights: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Pack named arrays for sending."""
    return ArrayRecord({name: Array(np.asarray(a, order="C")) for name, a in weights.items()})


def arrays_of(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Unpack named arrays of whoever packed them into copies that may be written to."""
    return {name: array.numpy() for name, array in record.items()}


def weights_of(record: ArrayRecord) -> dict[str, NDArray[np.float32]]:
    """Unpack named arrays, to be read and not written."""
    return {name: unpacked(array) for name, array in record.items()}


def unpacked(array: Array) -> NDArray[Any]:
    """Read an array in place, where `Array.numpy` makes a copy; it is not to be written to.

    NumPy parses each header as Python source, which takes longer than copying a small layer; here
    a header that was read before is known.
    Raises: ValueError where the bytes are no whole array.
    """
    if array.stype != "numpy.ndarray" or not array.data.startswith(b"\x93NUMPY\x01\x00"):
        return array.numpy()
    start = 10 + int.from_bytes(array.data[8:10], "little")
    shape, by_column, kind = _layout(array.data[:start])
    if by_column or kind.hasobject or 0 in shape:
        return array.numpy()
    flat = np.frombuffer(array.data, kind, math.prod(shape), offset=start)
    return flat.reshape(shape)


@functools.lru_cache(maxsize=4096)
def _layout(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, order and type from the header of a .npy file of version 1."""
    opened = io.BytesIO(header)
    np.lib.format.read_magic(opened)
    return np.lib.format.read_array_header_1_0(opened)

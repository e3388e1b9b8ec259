"""NumPy's files, read without trusting what they announce: every size is held against the file before it is taken."""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

MOST_BYTES = 1 << 28  # of one array: counts of 33 million ids; what is deflated may grow a thousand times
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others decompress without a bound
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that an `.npz` has, in memory; of an `.npy` its one array, under the first name.

    Raises ValueError for what is neither, for Python objects, for a shape that does not fit the bytes that are there,
    and for an array of more than 256 MB; FileNotFoundError where there is no file.
    """
    names = list(names)
    with Path(path).open("rb") as file, _as_value_errors():
        begins = file.read(2)
        file.seek(0)
        if begins == b"\x93N":
            return {names[0]: _read(file, os.fstat(file.fileno()).st_size)}
        if begins != b"PK":
            raise ValueError("it is neither an .npy nor an .npz file.")
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if names[0] not in members:
                have = ", ".join(map(repr, sorted(members)[:8])) or "nothing"
                raise ValueError(f"the archive has {have[:400]}; needed an array named {names[0]}.")
            return {name: _member(archive, members[name]) for name in names if name in members}


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an `.npy` file, of any size that the file holds; errors as of `read_arrays`."""
    with Path(path).open("rb") as file, _as_value_errors():
        size = os.fstat(file.fileno()).st_size
        return _read(file, size, most=size)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in _METHODS:
        raise ValueError(f"{info.filename} is compressed by method {info.compress_type}; needed stored or deflated.")
    with archive.open(info) as member:
        return _read(member, info.file_size)


def _read(file: IO[bytes], size: int, *, most: int | None = None) -> np.ndarray:
    """The array of an open `.npy` of `size` bytes, if it takes at most `most` (256 MB where None)."""
    most = MOST_BYTES if most is None else most
    read_header: Any = _HEADERS.get(np.lib.format.read_magic(file))
    if read_header is None:
        raise ValueError("it is of a version of the .npy format that is not read; needed 1.0 or 2.0.")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read.")
    needed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > most or min(shape, default=0) < 0:
        raise ValueError(f"it announces an array of {needed} bytes; at most {most} are read.")
    if needed != left:
        raise ValueError(f"its array of shape {str(shape)[:80]} takes {needed} bytes and {left} are there.")
    data = bytearray(needed)
    if (got := _fill(file, data)) != needed:
        raise ValueError(f"it ends after {got} of its {needed} bytes.")
    if file.read(1):
        raise ValueError(f"it goes on after its {needed} bytes.")
    return np.ndarray(shape, dtype, data, order="F" if fortran else "C")


def _fill(file: IO[bytes], data: bytearray) -> int:
    """Read into all of `data`, as far as the file goes; how many bytes there were."""
    at, view, reads = 0, memoryview(data), cast("BufferedIOBase", file)
    while at < len(data) and (got := reads.readinto(view[at:])):
        at += got
    return at


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """What damaged files raise in `zipfile`, `zlib` and NumPy's header reader."""
    broken = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, KeyError)
    headers = (TypeError, SyntaxError, OverflowError, RecursionError, tokenize.TokenError, MemoryError)
    try:
        yield
    except (*broken, *headers) as error:
        raise ValueError(f"it is damaged: {type(error).__name__}: {str(error)[:200]}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"it cannot be read: {error}") from error

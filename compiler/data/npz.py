"""Members of an `.npz` archive as samples that stay on disk, each byte of them read and checked once."""

from __future__ import annotations

import contextlib
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, Final, NamedTuple

import numpy as np
from numpy.lib import format as npy

from compiler.data.samples import Descriptor, Samples
from compiler.errors import DatasetError
from compiler.tensors import Array

#: Bytes of one sample: it is held in memory beside the model.
SAMPLE_LIMIT: Final = 256 * 1024**2
#: Bytes of an array in Fortran's order, whose samples lie scattered over the file: it is turned in memory.
SCATTERED_LIMIT: Final = 256 * 1024**2
#: Bytes that stay free on the disk where compressed data are unpacked.
KEEP_FREE: Final = 1024**3
#: Bytes that are read at once when all samples are gone through.
_BLOCK: Final = 4 * 1024**2
#: How numpy compresses; the errors of other methods' libraries are their own.
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
#: Of a member's header in the archive: its size without names, and where their two lengths stand.
_LOCAL, _LENGTHS = 30, 26


class Header(NamedTuple):
    """What a member says of its array."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def told(file: str) -> Iterator[None]:
    """Turn what a broken archive raises into an error that names the file."""
    try:
        yield
    except (
        *(ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError),
        *(OverflowError, struct.error, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise DatasetError(f"{file}: expected an .npz file of plain arrays; {error}") from error


class Archive:
    """An open `.npz`."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Read the table of contents.

        Raises:
            DatasetError: it is no such archive.
        """
        self._file: Final = file
        self._name: Final = name
        with told(name):
            self._zip: Final = zipfile.ZipFile(file)
        self._members: Final = {x.filename.removesuffix(".npy"): x for x in self._zip.infolist()}

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return list(self._members)

    def header(self, name: str) -> Header:
        """Return an array's type and shape.

        Raises:
            DatasetError: the member is no plain array, or cut short.
        """
        member = self._members[name]
        if member.compress_type not in _METHODS:
            raise DatasetError(
                f"{self._name}: {name!r}: expected it as numpy.savez or numpy.savez_compressed writes it; "
                f"got the compression method {member.compress_type}"
            )
        with told(self._name), self._zip.open(member) as stream:
            header = _header(stream, f"{self._name}: expected an .npz file of plain arrays; {name!r} is none")
            rest = member.file_size - stream.tell()
        if header.size != rest:
            raise DatasetError(f"{self._name}: {name!r}: expected {header.size} bytes; got {rest}")
        row = header.size // max(1, header.shape[0]) if header.shape else 0
        if row > SAMPLE_LIMIT:
            raise DatasetError(
                f"{self._name}: {name!r}: expected samples of at most {SAMPLE_LIMIT} bytes; got {row}"
            )
        return header

    def samples(self, name: str, look: Callable[[Array], None]) -> Samples:
        """Return an array's samples, after one pass over all of them that checks the archive's checksum.

        Args:
            name: of the array, which must have at least one dimension.
            look: is shown the samples, some at a time.

        Raises:
            DatasetError: the member is damaged, or there is no room to unpack it.
        """
        member, header = self._members[name], self.header(name)
        plain = member.compress_type == zipfile.ZIP_STORED and not header.fortran
        with (
            told(self._name),
            self._zip.open(member) as stream,
            contextlib.nullcontext() if plain else self._room(member.file_size) as unpacked,
        ):
            _header(stream, name)
            start = stream.tell()
            for block in self._turned(stream, header) if header.fortran else _blocks(stream, header):
                look(block)
                if unpacked is not None:
                    unpacked.write(block.tobytes())
            if unpacked is None:
                return Samples(
                    Descriptor(self._file), header.dtype, header.shape, self._start(member) + start
                )
            unpacked.flush()
            return Samples(Descriptor(unpacked), header.dtype, header.shape)

    def _turned(self, stream: IO[bytes], header: Header) -> Iterator[Array]:
        if header.size > SCATTERED_LIMIT:
            raise DatasetError(
                f"{self._name}: expected an array in C order (numpy.ascontiguousarray) above "
                f"{SCATTERED_LIMIT} bytes; got one of {header.size} in Fortran's"
            )
        flat = np.frombuffer(stream.read(), header.dtype)
        yield np.ascontiguousarray(flat.reshape(header.shape, order="F"))

    def _room(self, size: int) -> IO[bytes]:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free - KEEP_FREE
        if size > free:
            raise DatasetError(
                f"{self._name}: expected {size} bytes free in {folder} to unpack it; got {max(0, free)}"
            )
        return tempfile.TemporaryFile()

    def _start(self, member: zipfile.ZipInfo) -> int:
        self._file.seek(member.header_offset + _LENGTHS)
        name, extra = struct.unpack("<HH", self._file.read(4))
        return member.header_offset + _LOCAL + int(name) + int(extra)


def _blocks(stream: IO[bytes], header: Header) -> Iterator[Array]:
    """Yield samples to the end of the member, where the archive's checksum is compared."""
    row = header.size // max(1, header.shape[0])
    step = max(1, _BLOCK // max(1, row))
    for start in range(0, header.shape[0], step):
        count = min(step, header.shape[0] - start)
        data = stream.read(count * row)
        yield np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])
    stream.read(1)


def _header(stream: IO[bytes], refusal: str) -> Header:
    """Read an array's header; a structured or pickled type is no plain array."""
    try:
        version = npy.read_magic(stream)  # type: ignore[no-untyped-call]  # numpy's stubs leave it out
    except ValueError as error:
        raise DatasetError(refusal) from error
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)  # type: ignore[no-untyped-call]  # likewise
    if dtype.hasobject or dtype.names is not None or dtype.itemsize == 0:
        raise DatasetError(refusal)
    return Header(dtype, tuple(map(int, shape)), bool(fortran) and len(shape) > 1)

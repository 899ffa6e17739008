"""Read a file that a killed writer left marked as open for writing, without changing it.

HDF5 refuses such a file except to SWMR readers, and those repeat the read of a damaged block with
doubling pauses: for ever, in effect.  That is right while a writer lives and wrong once it is
dead.  So HDF5 is shown the file with an unmarked superblock: version 3, 48 bytes, described in
the HDF5 file format specification, section II.A.
"""

import io
import struct
from pathlib import Path
from typing import Any

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK = struct.Struct("<8s4B4QI")  # ..., version, 2 sizes, marks, ..., end of file, root, sum
VERSION, MARKS, END, CHECKSUM = 1, 4, 7, 9  # fields
MASK = 0xFFFFFFFF


def is_marked(path: Path) -> bool:
    """Tell whether a file is marked as open for writing.

    Returns:
        False also for what is not HDF5.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        fields = _fields(file.read(SUPERBLOCK.size))
    return bool(fields) and fields[VERSION] >= 3 and fields[MARKS] != 0


class UnmarkedFile(io.FileIO):
    """A marked file as HDF5 would find it unmarked, and as long as its superblock says.

    Blocks at the end that never reached the disk read as zeros, which no checksum accepts.

    Args:
        path: a file that ``is_marked``.

    Raises:
        OSError: it cannot be read, or the superblock is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r")
        fields = _fields(super().read(SUPERBLOCK.size) or b"")
        if fields is None or fields[CHECKSUM] != lookup3(SUPERBLOCK.pack(*fields)[:-4]):
            self.close()
            raise OSError("the superblock is damaged")
        self._end = fields[END]
        fields[MARKS] = 0
        fields[CHECKSUM] = lookup3(SUPERBLOCK.pack(*fields)[:-4])
        self._superblock = SUPERBLOCK.pack(*fields)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move as in any file; the end is that of the superblock."""
        if whence == io.SEEK_END:
            return super().seek(self._end + offset)
        return super().seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        """Fill the whole buffer."""
        view = memoryview(buffer).cast("B")
        start = self.tell()
        count = super().readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        if start < SUPERBLOCK.size:
            patch = self._superblock[start : start + len(view)]
            view[: len(patch)] = patch
        super().seek(start + len(view))
        return len(view)

    def __del__(self) -> None:
        """HDF5 lets go of it without closing: do so here, without a ResourceWarning."""
        self.close()


def lookup3(data: bytes) -> int:
    """Compute the checksum of HDF5's metadata, Bob Jenkins' hashlittle with initial value 0.

    Args:
        data: at least one byte.

    Returns:
        32 bits.
    """
    a = b = c = (0xDEADBEEF + len(data)) & MASK
    words = struct.iter_unpack("<3I", data + bytes(-len(data) % 12))
    blocks = list(words)
    for x, y, z in blocks[:-1]:
        a, b, c = (a + x) & MASK, (b + y) & MASK, (c + z) & MASK
        for shift_c, shift_a, shift_b in ((4, 6, 8), (16, 19, 4)):
            a, c = (a - c ^ _rotate(c, shift_c)) & MASK, (c + b) & MASK
            b, a = (b - a ^ _rotate(a, shift_a)) & MASK, (a + c) & MASK
            c, b = (c - b ^ _rotate(b, shift_b)) & MASK, (b + a) & MASK
    a, b, c = (v + w & MASK for v, w in zip((a, b, c), blocks[-1], strict=True))
    for shift_b, shift_c, shift_a in ((14, 11, 25), (16, 4, 14)):
        c = (c ^ b) - _rotate(b, shift_b) & MASK
        a = (a ^ c) - _rotate(c, shift_c) & MASK
        b = (b ^ a) - _rotate(a, shift_a) & MASK
    return (c ^ b) - _rotate(b, 24) & MASK


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & MASK


def _fields(content: bytes) -> list[Any] | None:
    if len(content) < SUPERBLOCK.size or not content.startswith(SIGNATURE):
        return None
    return list(SUPERBLOCK.unpack(content[: SUPERBLOCK.size]))

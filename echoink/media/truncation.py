"""Finds files that end before their headers say. Decoders silently read such a file as a shorter sound or video."""

import io
from collections.abc import Iterator

from echoink.common.errors import UserError

UNKNOWN = 2**31 - 2**20
"""A program that writes to a pipe cannot know the length and writes the largest one: from here on it means unknown."""


def check_sound(file: io.BufferedIOBase, name: str) -> None:
    """Raises `UserError` where a WAV (RIFF, RIFX, RF64), W64, AIFF, AU or CAF ends before its samples do; for
    other files see `check_container`.
    """
    with file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(16)
        if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
            data = _of_chunks(file, b"data", "big" if head[:4] == b"RIFX" else "little")
        elif head == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00":
            data = _of_w64(file)
        elif head[:4] == b"FORM" and head[8:11] == b"AIF":
            data = _of_chunks(file, b"SSND", "big")
        elif head[:4] == b"caff":
            data = _of_caf(file)
        elif head[:4] == b".snd":
            data = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
        else:
            check_container(file, name)
            return
        long = head[:4] in (b"RF64", b"riff", b"caff")
        if data is not None and (data[1] < UNKNOWN or long):
            start, length = data
            if start + length > size:
                raise _cut(name, size - start, length)


def check_container(file: io.BufferedIOBase, name: str) -> None:
    """Raises `UserError` where an MP4, Matroska, WebM or AVI ends before its boxes do."""
    with file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            for start, length in _boxes(file, size):
                if start + length > size:
                    raise _cut(name, size - start, length)
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            start, length = _of_matroska(file)
            if length is not None and start + length > size:
                raise _cut(name, size - start, length)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            length = int.from_bytes(head[4:8], "little")
            if 8 + length > size and length < UNKNOWN:
                raise _cut(name, size - 8, length)


def check_mp3(file: io.BufferedIOBase, name: str) -> None:
    """Raises `UserError` where an MP3 has fewer bytes than its Xing or Info header says, which encoders write into the
    first frame. Without that header nothing is known.
    """
    with file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head, start = file.read(10), 0
        if head[:3] == b"ID3":  # a tag before the sound; its size has 7 bits a byte
            start = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(start)
        first = file.read(4096)
        for tag in (b"Xing", b"Info"):
            at = first.find(tag)
            flags = int.from_bytes(first[at + 4 : at + 8], "big")
            if at >= 0 and flags & 2:
                field = at + 8 + 4 * (flags & 1)
                length = int.from_bytes(first[field : field + 4], "big")
                if size - start < length - 1_000:  # encoders differ in what they count
                    raise _cut(name, size - start, length)
                return


def known_to_sndfile(file: io.BufferedIOBase) -> bool:
    """Whether libsndfile reads all of a sound, judging by its format. It does not for MP3, where it stops at the first
    damaged frame and prints notes, or for an Ogg of several streams in sequence, of which it reads only the first.
    """
    with file:
        kind = file.read(4)
        if kind == b"OggS":
            return not _is_chained(file)
        return kind in (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b".snd", b"fLaC", b"caff")


_OGG_PAGE = 65_307
"""Bytes of the largest page of an Ogg."""


def _is_chained(file: io.BufferedIOBase) -> bool:
    """Whether the last page of an Ogg is of another stream than the first, as in a recording of internet radio."""
    file.seek(0)
    first = file.read(18)[14:18]
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - 2 * _OGG_PAGE))
    rest = file.read()
    last = rest.rfind(b"OggS\x00")  # with the version, so that sound is hardly ever taken for a page
    return last >= 0 and len(rest) >= last + 18 and rest[last + 14 : last + 18] != first


def _cut(name: str, there: int, length: int) -> UserError:
    problem = f"{name} is cut off: it has {max(0, there):,} of {length:,} bytes"
    return UserError(problem, "replace the file or drop the sample")


def _of_chunks(file: io.BufferedIOBase, wanted: bytes, order: str) -> tuple[int, int] | None:
    """Where the samples of a RIFF or AIFF begin and how many bytes they have; None where the header does not say."""
    file.seek(12)
    long = None
    while len(chunk := file.read(8)) == 8:
        size, start = int.from_bytes(chunk[4:], order), file.tell()
        if chunk[:4] == b"ds64":  # of RF64: sizes of 64 bits
            long = int.from_bytes(file.read(16)[8:], order)
        if chunk[:4] == wanted:
            return start, long if long is not None and size == 2**32 - 1 else size
        file.seek(start + size + size % 2)
    return None


def _of_w64(file: io.BufferedIOBase) -> tuple[int, int] | None:
    file.seek(40)
    while len(chunk := file.read(24)) == 24:
        size, start = int.from_bytes(chunk[16:], "little"), file.tell()
        if chunk[:4] == b"data":
            return start, size - 24
        file.seek(start - 24 + (max(size, 24) + 7) // 8 * 8)
    return None


def _of_caf(file: io.BufferedIOBase) -> tuple[int, int] | None:
    file.seek(8)
    while len(chunk := file.read(12)) == 12:
        size, start = int.from_bytes(chunk[4:], "big", signed=True), file.tell()
        if chunk[:4] == b"data":
            return (start, size) if size >= 0 else None
        if size < 0:
            return None
        file.seek(start + size)
    return None


_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"uuid", b"meta", b"sidx", b"styp", b"mfra")
"""Types of boxes that are on the first level of an MP4."""


def _boxes(file: io.BufferedIOBase, end: int) -> Iterator[tuple[int, int]]:
    """Start and length of the boxes of an MP4 on its first level."""
    start = 0
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else end - start if length == 0 else length
        # Bytes after the last box, such as an ID3 tag, are none.
        if length < 8 or (start + length > end and head[4:8] not in _BOXES):
            return
        yield start, length
        start += length


def _of_matroska(file: io.BufferedIOBase) -> tuple[int, int | None]:
    """Where the segment of a Matroska file begins and how many bytes it has; None where it does not say."""
    file.seek(4)
    header = _variable(file)
    file.seek(file.tell() + (header or 0))
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0, None
    length = _variable(file)
    return file.tell(), length


def _variable(file: io.BufferedIOBase) -> int | None:
    """A number of 1 to 8 bytes, whose first byte says how many; None if all bits are ones, which means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more), "big")
    return None if value == 2 ** (7 * (more + 1)) - 1 else value

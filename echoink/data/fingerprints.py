"""Finds pictures and sounds that look or sound nearly the same though their bytes differ.

A file's digest recognizes a copy. A fingerprint also recognizes a file that was scaled, compressed or made louder: its
bits say where a picture grows brighter or darker from one cell to the next, or where the step between two bands of a
sound grows over time. Two are near if few bits differ. This is no proof: it finds pairs to look at.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

SIDE = 16
"""A picture has 16 rows of 17 cells. For each colour, two bits say whether it rises or falls to the next cell."""
LEAST = 8
"""Of 255; smaller steps do not count."""
BANDS, SEGMENTS, FRAME = 16, 32, 2048
"""A sound has 16 × 32 bits, from 17 bands × 33 parts in time of spectra over 2,048 samples (128 ms)."""
LOWEST, HIGHEST, RATE = 100, 7000, 16_000
"""Hertz."""
NEAR = {"picture": 0.15, "sound": 0.27}
"""Near-duplicates differ in at most this share of the bits that are set in either.

Of 150 pictures and 150 sounds of the synthetic set, nine in ten are found after compression (JPEG, MP3, Ogg) or scaling
(tests/data/test_fingerprints.py requires eight in ten of 30). Of all 5.3 million pairs of that set, 186 of pictures
(the same shape at about the same place) and 5 of sounds are found (`python -m echoink.data check`). A sound that begins
or ends elsewhere is not recognized.
"""


def of_picture(image: Image.Image) -> bytes | None:
    """1,536 bits; None for a picture without contrast: all such pictures are alike."""
    cells = np.asarray(image.convert("RGB").resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.float32)
    rises = np.diff(cells, axis=1)  # [16, 16, 3], of 255
    bits = np.packbits([rises > LEAST, rises < -LEAST])
    return bits.tobytes() if bits.any() else None


def of_sound(samples: np.ndarray) -> bytes | None:
    """512 bits of mono samples at 16 kHz; None for silence or for less than four frames."""
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


def near(
    prints: Sequence[bytes], share: float, progress: Callable[[Iterable], Iterable] = iter
) -> list[tuple[int, int]]:
    """Pairs of indices, the smaller first, whose fingerprints differ in at most `share` of the bits set in either.

    Takes a time in proportion to the square of their number: 4,000 take about two seconds.
    """
    if len(prints) < 2:
        return []
    table = np.frombuffer(b"".join(prints), dtype=np.uint8).reshape(len(prints), -1)
    found = []
    for place in progress(range(len(table) - 1)):
        others = table[place + 1 :]
        differ, either = (
            np.bitwise_count(bits).sum(1, dtype=np.int64) for bits in (others ^ table[place], others | table[place])
        )
        found += [(place, place + 1 + int(other)) for other in np.flatnonzero(differ <= share * either)]
    return found

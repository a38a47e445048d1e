"""Near-duplicates: what was compressed, scaled or made louder is found, another picture or sound is not."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from echoink.data import fingerprints, synthetic


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(3)
    drawn = [synthetic.draw(rng, "both")[0] for _ in range(30)]
    return [(synthetic.render_picture(rng, scene), synthetic.render_sound(rng, scene)) for scene in drawn]


def compressed(image, quality, scale):
    buffer = io.BytesIO()
    image.resize([round(side * scale) for side in image.size]).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def coded(samples, kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=kind)
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


def found(originals, others, kind):
    """How many of the others are near their own original, and how many near another."""
    assert None not in originals + others
    pairs = fingerprints.near(originals + others, fingerprints.NEAR[kind])
    own = sum(b - a == len(originals) for a, b in pairs)
    return own, len(pairs) - own


@pytest.mark.parametrize("change", [(60, 1.0), (90, 0.5), (75, 1.7)])
def test_a_picture_that_was_compressed_or_scaled_is_found(scenes, change):
    originals = [fingerprints.of_picture(image) for image, _ in scenes]
    others = [fingerprints.of_picture(compressed(image, *change)) for image, _ in scenes]
    own, wrong = found(originals, others, "picture")
    assert own >= 24 and wrong <= 2


@pytest.mark.parametrize(
    "change", [lambda x: 0.3 * x, lambda x: coded(x, "MP3"), lambda x: coded(x, "OGG")], ids=["quieter", "mp3", "ogg"]
)
def test_a_sound_that_was_coded_or_made_quieter_is_found(scenes, change):
    originals = [fingerprints.of_sound(sound) for _, sound in scenes]
    others = [fingerprints.of_sound(change(sound)) for _, sound in scenes]
    own, wrong = found(originals, others, "sound")
    assert own >= 24 and wrong == 0


def test_what_has_nothing_to_compare_has_no_fingerprint():
    assert fingerprints.of_picture(Image.new("RGB", (64, 64), "grey")) is None
    assert fingerprints.of_sound(np.zeros(16_000, dtype=np.float32)) is None
    assert fingerprints.of_sound(np.ones(100, dtype=np.float32)) is None
    assert fingerprints.near([], 0.1) == [] and fingerprints.near([b"\x01"], 0.1) == []


def test_pairs_by_hand():
    """0b1111 and 0b1110 differ in one of four bits; 0b1111 and 0b0000_1111_0000 in all."""
    assert fingerprints.near([b"\x0f", b"\x0e", b"\xf0"], 0.25) == [(0, 1)]
    assert fingerprints.near([b"\x0f", b"\x0e", b"\xf0"], 0.24) == []

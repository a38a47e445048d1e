"""What it saves to decode videos ahead of time: an evaluation with and without threads, in turns.

    python experiments/ahead.py

24 questions about a video of 12 s in 1280x720, the embedded model, batches of 4; see experiments/scale.md.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from echoink import evaluation, models, synthetic
from echoink.compose import compose
from echoink.processing import Caps, PromptProcessor
from echoink.prompts import Prompt
from echoink.rewards import Match
from echoink.rollout import Sampling
from echoink.samples import DataType, Sample
from echoink.splits import read_split, video_caps
from tests import files


def seconds(samples: list[Sample], workers: int) -> float:
    """Of one evaluation."""
    config = compose([])[0].config
    model, omni = models.load_model("tiny"), models.load_processor("tiny", 112 * 112, 112 * 112)
    caps = Caps(10.0, video_caps(config.model), 4096)
    processor = PromptProcessor(omni, model, Prompt(**vars(config.prompt)), caps, workers)
    sampling, ends = Sampling(1.0, 0.95, 50, 64), models.end_ids(model, omni)
    started = time.perf_counter()
    answers = evaluation.evaluate(
        model, processor, samples, sampling, ends, Match.lenient, 0, "videos", 4, False, draws=("sample",)
    )
    assert len(list(answers)) == len(samples)
    return time.perf_counter() - started


def main() -> None:
    """Print the seconds."""
    with tempfile.TemporaryDirectory() as place:
        synthetic.write(Path(place) / "set", seed=0, sizes={"train": 1, "dev": 1, "valid": 24})
        shown = files.video(Path(place) / "clip.mp4", seconds=12, fps=24, size=(1280, 720))
        media = {"video": shown, "image": None, "audio": None, "data_type": DataType.video}
        samples = [replace(sample, **media) for sample in read_split(Path(place) / "set", "valid")]
        for _ in range(3):
            for workers in (0, 2):
                print(f"{workers} threads: {seconds(samples, workers):.2f} s", flush=True)


if __name__ == "__main__":
    main()

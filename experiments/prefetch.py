"""Times an evaluation on videos with and without threads that decode them ahead of time, in turns.

    python experiments/prefetch.py

24 questions about a video of 12 s in 1280x720, with the embedded model and batches of 4; see experiments/scale.md.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from echoink.config.compose import compose
from echoink.data import synthetic
from echoink.data.processor import Caps, PromptProcessor
from echoink.data.samples import DataType, Sample
from echoink.data.splits import read_split, video_caps
from echoink.evaluation import evaluate
from echoink.models import loading
from echoink.rewards.types import Match
from echoink.rollout.sampling import Sampling
from tests.helpers import files


def seconds(samples: list[Sample], workers: int) -> float:
    """Seconds of one evaluation."""
    config = compose([])[0].config
    model, omni = loading.load_model("tiny"), loading.load_processor("tiny", 112 * 112, 112 * 112)
    caps = Caps(10.0, video_caps(config.model), 4096)
    processor = PromptProcessor(omni, model, config.prompt, caps=caps, workers=workers)
    sampling = Sampling(1.0, 0.95, 50, 64, loading.end_ids(model, omni))
    started = time.perf_counter()
    setup = evaluate.EvaluationSetup(
        processor, sampling, match=Match.lenient, seed=0, batch_prompts=4, draws=("sampled",)
    )
    answers = evaluate.evaluate(model, samples, setup, "videos")
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

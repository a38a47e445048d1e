"""Shows rollouts in MLflow with their pictures and sounds: a group of completions is a trace.

The trace's input is the prompt with its picture and its playable sound. Each completion is a span with its rewards and
its advantage as feedback; the gold answer is the trace's expectation. What becomes a trace is written to `traces.jsonl`
first, so that it can be sent again.
"""

import atexit
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from echoink.common.errors import UserError
from echoink.common.files import read_rows
from echoink.media.previews import encoded, picture, sound

FILE = "traces.jsonl"
TAG = "echoink.trace"
DIGEST = "echoink.digest"
SECONDS = 30
"""A longer sound is cut in a trace."""
PIXELS = 512
"""A larger picture is scaled down to this many pixels a side."""


def name(rows: list[dict]) -> str:
    """The name of a group: "step 40 · train_17"."""
    return f"step {rows[0]['step']} · {rows[0]['id']}"


def groups(folder: Path) -> Iterator[list[dict]]:
    """The groups of a run's `traces.jsonl`."""
    found: dict[str, list[dict]] = {}
    for row in read_rows(folder / FILE):
        found.setdefault(name([row]), []).append(row)
    yield from found.values()


def digest(rows: list[dict]) -> str:
    """A digest of a group's completions."""
    return hashlib.sha256("\0".join(row["text"] for row in rows).encode()).hexdigest()[:12]


def sent(stored) -> dict[str, Any]:
    """MLflow's `TraceInfo` of the groups that a store has of a run, by name."""
    found, page = {}, None
    while True:
        traces = stored.client.search_traces(
            locations=[stored.experiment_id], run_id=stored.run_id, include_spans=False, page_token=page
        )
        found |= {trace.info.tags[TAG]: trace.info for trace in traces if TAG in trace.info.tags}
        page = traces.token
        if not page:
            return found


def send(stored, rows: list[dict]) -> None:
    """Send a group as a trace.

    Args:
        stored: the run, a `client.StoredRun`.
        rows: of one group, from `traces.jsonl`: `step`, `id`, `problem`, `options`, `gold`, `media`, and of each
            completion `text`, `tokens`, rewards by name, `total` and `advantage`.
    """
    import mlflow
    from mlflow.entities import AssessmentSource

    _end_quietly()
    client, first = stored.client, rows[0]
    question = "\n".join([first["problem"], *first["options"]])
    content = [*_media(first["media"]), {"type": "text", "text": question}]
    root = client.start_trace(
        name(rows),
        span_type="CHAT_MODEL",
        inputs={"messages": [{"role": "user", "content": content}]},
        attributes={"step": first["step"], "sample": first["id"]},
        experiment_id=stored.experiment_id,
        run_id=stored.run_id,
    )
    spans = []
    for row in rows:
        span = client.start_span(f"completion {row['g']}", root.trace_id, root.span_id, span_type="LLM")
        client.end_span(root.trace_id, span.span_id, outputs=row["text"], attributes={"tokens": row["tokens"]})
        spans.append(span.span_id)
    best = max(rows, key=lambda row: row["total"])
    choices = [{"message": {"role": "assistant", "content": best["text"]}}]
    client.end_trace(root.trace_id, outputs={"choices": choices})
    mlflow.flush_trace_async_logging()
    source = AssessmentSource(source_type="CODE", source_id="echoink")
    for row, span in zip(rows, spans, strict=True):
        for feedback, value in row.items():  # every reward, the total and the advantage
            if isinstance(value, float):
                mlflow.log_feedback(trace_id=root.trace_id, name=feedback, value=value, source=source, span_id=span)
    mlflow.log_expectation(trace_id=root.trace_id, name="gold", value=first["gold"], source=source)
    client.set_trace_tag(root.trace_id, DIGEST, digest(rows))
    client.set_trace_tag(root.trace_id, TAG, name(rows))  # last: it says that the trace is whole


@cache
def _end_quietly() -> None:
    """Reset MLflow's trace provider at exit, where its own generator of ids complains otherwise."""
    from mlflow.tracing import provider

    atexit.register(provider.reset)


def _media(places: dict[str, str]) -> Iterator[dict]:
    """The parts of a message that hold a sample's picture and sound; a text names what cannot be read."""
    for kind, place in places.items():
        try:
            if kind == "image":
                url = "data:image/jpeg;base64," + encoded(picture(Path(place), PIXELS))
                yield {"type": "image_url", "image_url": {"url": url}}
            elif kind == "audio":
                data = encoded(sound(Path(place), SECONDS))
                yield {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
            else:
                yield {"type": "text", "text": f"{kind}: {place}"}
        except UserError as error:
            yield {"type": "text", "text": f"{kind}: {error.problem}"}

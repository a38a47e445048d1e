"""Exports a checkpoint as a folder that plain transformers (and peft) load without this package, with a model card.

    python -m echoink.export checkpoint=outputs/tiny/<time> output=my-model
    python -m echoink.export checkpoint=… output=… vllm=true            in the layout that vLLM reads
    python -m echoink.export checkpoint=… output=… merge=false          an adapter, not merged into its base
    python -m echoink.export checkpoint=… output=… push_to=me/my-model  to the hub; a new repository is private

The folder holds weights (safetensors), config.json, generation_config.json, the processor and README.md, the card with
the run's numbers and data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echoink.common import cli
from echoink.common.keys import key
from echoink.common.startup import imports


@dataclass
class ExportConfig:
    """Settings of the command."""

    checkpoint: str = key("a run folder (its best step on dev, else the last) or a step")
    output: str = key("the new folder")
    merge: bool = key("merge an adapter into its base; false: export the adapter alone", True)
    vllm: bool = key("write the layout of the published models, which vLLM reads", False)
    push_to: str | None = key("a repository of the hub to push to, such as me/my-model; a new one is private", None)


def main(words: Sequence[str]) -> None:
    """Export as the settings say."""
    given = cli.settings(ExportConfig, words)
    # Heavy libraries are imported after the command line is checked.
    with imports():
        from echoink.common import console
        from echoink.pipeline.export import export

    with console.quiet_libraries():
        folder = export(given.checkpoint, Path(given.output), merge=given.merge, vllm=given.vllm, push_to=given.push_to)
    console.say("export", str(folder))


if __name__ == "__main__":
    cli.run(main, cli.help_of(__doc__, ExportConfig))

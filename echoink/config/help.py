"""`python -m echoink.train --help`: usage, what there is to choose, and every key with its meaning and range."""

from echoink.common.keys import fields_of, meaning
from echoink.config.compose import compose
from echoink.config.mistakes import groups
from echoink.config.schema import Config, flatten

USAGE = """\
EchoInk: GRPO for multimodal language models that reason over what they hear and see.

  python -m echoink.train                                        train the tiny model, evaluate before and after
  python -m echoink.train reward.lambda_fmt=0.5 grpo.beta=0      change values
  python -m echoink.train experiment=quickstart                  an experiment: a file of differences
  python -m echoink.train --multirun reward.lambda_fmt=0,0.5,1   a sweep; each job is a process of its own
  python -m echoink.train task=eval checkpoint=<run folder>      evaluate only
  python -m echoink.train --cfg job experiment=echoink_r1_7b     print a configuration and do nothing
"""


def help_text() -> str:
    """The whole page."""
    lines = [USAGE, "Files to choose from (group=file):", ""]
    for folder in groups():
        names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        lines.append(f"  {folder.name:<12} {names}")
    lines += ["", "Keys, their values in the default run, and what they mean:", ""]
    config: Config = compose([])[0].config
    values = flatten(config)
    for key, spec, _value in fields_of(config):
        shown = str(values[key]).strip().replace("\n", "⏎")
        shown = shown if len(shown) <= 24 else shown[:23] + "…"
        lines.append(f"  {key:<32} {shown:<25} {meaning(spec)}")
    lines += ["", "Hydra's own flags: --multirun, --cfg job, --config-dir DIR, --hydra-help."]
    return "\n".join(lines) + "\n"

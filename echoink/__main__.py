"""EchoInk: GRPO for multimodal language models that reason over what they hear and see.

    python -m echoink.train       train or evaluate; sweeps with --multirun
    python -m echoink.data        fetch, start, check, show and split datasets
    python -m echoink.predict     ask a model about files of your own
    python -m echoink.rescore     score stored answers with another parser or reward
    python -m echoink.runs        list the runs in outputs/, and how to resume them
    python -m echoink.open        open MLflow at the page of a run or a sweep
    python -m echoink.report      make a page about runs and sweeps
    python -m echoink.export      write a plain transformers model with its card
    python -m echoink.curate      make AVQA-R1-6K, hard questions, or responses to learn from
    python -m echoink.benchmark   time a training step with and without prompt sharing
    python -m echoink.sync        complete or rebuild MLflow from the run folders
    python -m echoink.doctor      find what is wrong with this machine
    python -m echoink.tiny        make the embedded model
    python -m echoink.small       make a model of 146 million parameters from pretrained parts

Each has --help.
"""

import sys
from importlib.util import find_spec

if words := [word for word in sys.argv[1:] if word not in ("-h", "--help")]:
    is_command = words[0].isidentifier() and find_spec(f"echoink.{words[0]}") is not None
    hint = f"python -m echoink.{words[0]}, with a dot" if is_command else "python -m echoink lists what there is"
    print(f"error: python -m echoink {words[0]} is no command\n→ {hint}", file=sys.stderr)
    sys.exit(2)
print(__doc__.strip())

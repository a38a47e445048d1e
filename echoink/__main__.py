"""EchoInk: GRPO for multimodal language models that reason over what they hear and see.

    python -m echoink.train       train or evaluate; sweeps with --multirun
    python -m echoink.data        fetch, start, check, show and split datasets
    python -m echoink.predict     ask a model about files of your own
    python -m echoink.rescore     judge stored answers by another parser or reward
    python -m echoink.runs        what there is in outputs/, and how to go on
    python -m echoink.open        MLflow at a run's or a sweep's page
    python -m echoink.report      a page about runs and sweeps
    python -m echoink.export      a plain transformers model with its card
    python -m echoink.curate      make AVQA-R1-6K, hard questions, or responses to learn from
    python -m echoink.benchmark   the step against plain rows
    python -m echoink.sync        complete or rebuild MLflow from the run folders
    python -m echoink.doctor      what is wrong with this machine
    python -m echoink.tiny        make the embedded model
    python -m echoink.small       make a model of 146 million parameters out of pretrained parts

Each has --help.
"""

print(__doc__.strip())

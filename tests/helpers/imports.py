"""What `processes` imports once, for all that it forks."""

from echoink.common.startup import imports

with imports():
    import av  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracing  # noqa: F401
    import scipy.cluster.hierarchy
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401
    import trl.trainer.grpo_trainer  # noqa: F401
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni, processing_qwen2_5_omni  # noqa: F401

    import echoink.data.media_check
    import echoink.pipeline.execute  # noqa: F401
    from echoink.run_folder import reader

reader.defaults()  # which every run composes once

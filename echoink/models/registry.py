"""The families of models that can be trained."""

from transformers import PretrainedConfig, PreTrainedModel

from echoink.models import qwen2_5_omni
from echoink.models.family import Family

FAMILIES: dict[str, Family] = {qwen2_5_omni.MODEL_TYPE: qwen2_5_omni}
"""Families by the `model_type` of the configuration."""


def family_of_config(config: PretrainedConfig) -> tuple[Family, PretrainedConfig] | None:
    """The family of a published configuration, and the part of it that the family uses; None if it is unknown."""
    for family in FAMILIES.values():
        own = family.own_config(config)
        if own.model_type == family.MODEL_TYPE:
            return family, own
    return None


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model; the model may be without its head."""
    return FAMILIES[model.config.model_type]

"""EchoInk: GRPO for multimodal language models that reason over what they hear and see."""

__version__ = "0.1.0"

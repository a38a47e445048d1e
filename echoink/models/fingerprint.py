"""Digests of a model: of its weights, and of the settings by which it computes."""

import hashlib
import json
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from echoink.distributed import sharding


def weights_digest(model: torch.nn.Module) -> str:
    """Digest of names, types, shapes and values of a model's state dict; of its parameters if FSDP2 has sharded it.

    All processes must call it for a sharded model.
    """
    digest = hashlib.sha256()
    sharded = sharding.is_sharded(model)  # its state_dict would shard it again while it is gathered
    state = dict(model.named_parameters(remove_duplicate=False)) if sharded else model.state_dict()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().contiguous().flatten().view(torch.uint8).cpu()
        digest.update(values.clone().numpy().data)  # without a copy numpy keeps FSDP2 from freeing a weight
    return digest.hexdigest()


_OF_THE_FILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Keys of a configuration that say where weights are from and how they are stored."""


def settings_digest(model: PreTrainedModel) -> str:
    """Digest of a model's configuration: rotary base, norms, token ids and all else that its weights do not say."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items() if key not in _OF_THE_FILE}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    # Defaults are left out: another version of transformers may have more of them.
    settings = plain(model.config.to_diff_dict())
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

"""A digest of a model's weights."""

import hashlib

import torch
from torch.distributed.tensor import DTensor

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

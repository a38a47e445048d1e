"""A digest of a model's weights."""

import hashlib

import torch

from echoink.distributed import sharding


def weights_digest(model: torch.nn.Module) -> str:
    """Digest of a model's parameters and buffers: names, types and values. Of a divided one all processes take part."""
    digest = hashlib.sha256()
    sharded = sharding.is_sharded(model)  # its state_dict would take it apart where it is whole for a while
    state = dict(model.named_parameters(remove_duplicate=False)) if sharded else model.state_dict()
    for name, tensor in sorted(state.items()):
        tensor = sharding.full(tensor)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().contiguous().flatten().view(torch.uint8).cpu()
        digest.update(values.clone().numpy().data)  # numpy would keep FSDP2 from giving the memory of a weight back
    return digest.hexdigest()

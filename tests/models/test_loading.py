"""Where weights go while they are read."""

from types import SimpleNamespace

import pytest
import torch

from echoink.common.errors import UserError
from echoink.models import loading
from echoink.models.families import FAMILIES


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_weights_are_read_to_the_device_and_not_all_to_the_host_first(monkeypatch, device):
    """Eight processes that each hold a 7B in float32 on the host want 264 GiB of it."""
    asked = {}

    def from_pretrained(*_, **settings):
        asked.update(settings)
        raise ValueError("asked enough")

    (family,) = FAMILIES.values()
    monkeypatch.setattr(family, "MODEL", SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setattr(loading, "processes", lambda: SimpleNamespace(device=torch.device(device)))
    with pytest.raises(UserError, match="asked enough"):
        loading.load_model("tiny")
    assert asked.get("device_map") == (None if device == "cpu" else {"": torch.device("cuda:1")})

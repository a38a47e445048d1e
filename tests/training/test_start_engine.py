"""How vLLM is started beside a run."""

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from echoink.models import loading
from echoink.planning import memory
from echoink.rollout import vllm_engine, vllm_environment
from echoink.rollout.sampling import Sampling
from echoink.training import start_engine
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model


def test_an_engine_takes_vllms_first_runner_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    assert vllm_environment.variables("python")["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert vllm_environment.variables("python")["VLLM_USE_V2_MODEL_RUNNER"] == "1"


@pytest.mark.parametrize(("gpu_has", "rows"), [(80 * 2**30, memory.MOST_PROMPTS), (None, 10), (0, 1)])
def test_an_evaluation_decodes_as_many_completions_together_as_there_is_room_for(model, monkeypatch, gpu_has, rows):
    of = memory.model_of(model)
    taken = of.weight_bytes + memory.gathered_bytes(of, bf16=True)
    each = vllm_engine.cache_bytes(model, 1, 300 + 100, torch.bfloat16)
    room = gpu_has if gpu_has is not None else int((taken + 10.5 * each) / memory.USABLE)
    monkeypatch.setattr(start_engine, "processes", lambda: SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, room))
    job = SimpleNamespace(model=model, sampling=Sampling(1.0, 1.0, 0, 100))
    assert start_engine.rows_of_evaluation(job, longest=300, bf16=True) == rows


def test_the_engine_of_a_comparison_is_started_for_the_checkpoints_adapter(model, tmp_path, monkeypatch):
    """The base is loaded first, and has none. An adapter merged in bfloat16 would lose most of its update."""
    get_peft_model(model, loading.lora(5, 8, 0.0, ("q_proj",))).save_pretrained(tmp_path / "adapter")
    started = []
    monkeypatch.setattr(
        start_engine.vllm_engine,
        "Engine",
        lambda model, processor, setup, **_: started.append(setup) or SimpleNamespace(version="0", seconds=0),
    )
    words = ["task=compare", f"checkpoint={tmp_path / 'adapter'}", "eval.engine=vllm", "trainer.bf16=true"]
    sampling = Sampling(1.0, 1.0, 0, 8, (0,))
    job = SimpleNamespace(
        config=config_of(*words), model=tiny_model(), processor=SimpleNamespace(processor=None), sampling=sampling
    )
    start_engine.start(job, SimpleNamespace(path=tmp_path), longest=300)
    assert [(setup.adapter_rank, setup.rank_apart) for setup in started] == [(5, 8)]

"""The memory estimate against what autograd keeps."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from echoink.distributed.sharding import shard_group_size
from echoink.models.encoders import encode_media
from echoink.models.logprobs import packed_logprobs
from echoink.models.rounding import round_frozen
from echoink.models.shared_prefix import install
from echoink.planning import memory, plan
from tests.helpers.configs import config_of


def kept(model, prompt, group, length, bf16):
    """Bytes that the language model keeps for the backward pass of a packed row."""
    completions = torch.randint(20, 400, (group, length), generator=torch.Generator().manual_seed(0))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    copies = sum(p.numel() for p in [*model.model.language_model.layers.parameters(), model.lm_head.weight]) * 2 * bf16
    with torch.no_grad():
        features = encode_media(model.model, [prompt])
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage, storage.nbytes())  # held, so that no address is used again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        packed_logprobs(
            model,
            [prompt],
            features,
            prompt_index=[0] * group,
            completion_ids=completions,
            scored=torch.ones_like(completions).bool(),
        )
    return sum(size for _, size in storages.values()) - copies


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("width", "group", "length"), [(128, 4, 64), (256, 4, 64), (128, 32, 16)])
def test_the_estimate_of_activations_is_what_autograd_keeps(model, prompts, width, group, length, bf16):
    if width != 128:
        config = model.config
        text = config.get_text_config()
        text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 5 * width, 4
        text.num_attention_heads, text.layer_types = width // 32, ["full_attention"] * 4
        config.audio_config.output_dim = config.vision_config.out_hidden_size = width
        model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(config)
        install(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    measured = kept(model.train(), prompts[0], group, length, bf16)
    estimated = memory.activations(
        memory.model_of(model), memory.PackedRow(1, group, len(prompts[0].input_ids), length), bf16
    )
    assert 0.9 <= estimated / measured <= 1.25


def test_the_whole_of_a_step(model):
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def estimate(learning, *words):
        words = [*words, "trainer.prompts_per_step=1", "trainer.micro_batch_prompts=1", "grpo.group_size=4"]
        words += ["generation.max_new_tokens=200"]
        return memory.of_run(config_of(*words), memory.model_of(model), learning, longest=200)

    full = estimate(parameters, "grpo.beta=0.04")
    assert (full.weights, full.reference, full.gradients) == (4 * parameters,) * 3
    assert full.optimizer == 8 * parameters
    assert full.total == 20 * parameters + full.activations + full.cache
    assert estimate(parameters, "grpo.beta=0").reference == 0
    lean = estimate(0, "adapter=lora", "trainer.bf16=true")
    assert (lean.reference, lean.gradients, lean.optimizer) == (0, 0, 0)
    half = estimate(parameters, "trainer.bf16=true", "grpo.beta=0.04")
    assert half.weights == 8 * parameters  # in float32, the decoder's copies and autocast's
    held = copy.deepcopy(model).requires_grad_(False)
    round_frozen(held, torch.bfloat16)
    assert lean.weights == half.reference == pytest.approx(sum(p.nbytes for p in held.parameters()), rel=0.1)


def test_an_engine_takes_its_memory_in_the_rollout_or_always():
    asleep = memory.Estimate(weights=10, reference=0, gradients=2, optimizer=0, activations=4, cache=3, engine=9)
    assert asleep.total == 10 + 3 + 9
    assert replace(asleep, engine_between=9).total == 10 + 3 + 9 + 6
    assert replace(asleep, weights=5, gathered=10).total == 5 + 3 + 10 + 9


@pytest.mark.parametrize(("sharding", "parts"), memory.SHARDED_PARTS.items())
def test_processes_divide_the_parts_that_their_sharding_names(model, sharding, parts):
    config, here = config_of("trainer.bf16=true", f"trainer.sharding={sharding.name}"), memory.model_of(model)
    whole, half = (memory.of_run(config, here, model.num_parameters(), longest=20, among=n) for n in (1, 2))
    gathered = 2 * here.parameters if "weights" in parts else 0
    assert half == replace(whole, gathered=gathered, **{name: getattr(whole, name) // 2 for name in parts})


def test_on_a_gpu_adamw_takes_the_roots_of_all_second_moments_at_once(model):
    parameters = sum(parameter.numel() for parameter in model.parameters())
    here = memory.model_of(model)
    config = config_of("trainer.prompts_per_step=1", "trainer.micro_batch_prompts=1", "grpo.group_size=2")
    cpu, gpu = (
        memory.of_run(config, replace(here, joins_keys=joined), parameters, longest=20) for joined in (True, False)
    )
    assert (cpu.update, gpu.update) == (0, 4 * parameters)
    stepping = replace(gpu, activations=0, cache=0)
    assert stepping.total == replace(stepping, update=0).total + 4 * parameters


def test_over_several_machines_each_holds_a_whole_copy_between_its_processes(monkeypatch):
    words = ["experiment=echoink_r1_7b", "dataset.path=x", "trainer.prompts_per_step=16", "trainer.sharding="]
    found = {}
    for sharding, processes in (("fsdp2", 8), ("fsdp2", 16), ("zero3", 8), ("zero3", 16)):
        config = config_of(*words[:3], words[3] + sharding, f"trainer.processes={processes}")
        found[sharding, processes] = plan.needs(config, plan.count_parameters(config), 580)
    assert found["fsdp2", 16].weights == found["fsdp2", 8].weights
    assert found["zero3", 8].weights == 2 * found["zero3", 16].weights, "DeepSpeed divides among all machines"
    assert found["fsdp2", 8].reference == 2 * found["zero3", 8].reference, "for DeepSpeed it is loaded in bfloat16"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert shard_group_size(16) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # a process a machine: there is nobody else to divide among
    assert shard_group_size(16) == 16


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_runs_engine_is_counted(model, sleeps):
    words = ["generation=vllm", "trainer.prompts_per_step=8", "grpo.group_size=4", "generation.max_new_tokens=100"]
    words += [f"generation.vllm.sleep={sleeps}"]
    here, parameters = replace(memory.model_of(model), joins_keys=False), model.num_parameters()
    found = memory.of_run(config_of(*words), here, parameters, longest=300)
    assert found.engine == 4 * parameters + memory.cache(here, memory.PackedRow(8 * 4, 1, 0, 400), False)
    assert found.engine_between == (0 if sleeps else found.engine)
    alone = memory.of_run(config_of(*words[1:]), here, parameters, longest=300)
    assert replace(alone, cache=0) == replace(found, engine=0, engine_between=0) and alone.cache and not found.cache
    rule = config_of(*words, "reward=accuracy_format", "reward.lambda_int=1", "reward.integration=need")
    again = memory.of_run(rule, here, parameters, longest=300)
    assert again.cache == alone.cache, "our decoder makes the further answers"
    evaluates = config_of("eval.engine=vllm", *words[1:])
    only = memory.of_run(evaluates, here, parameters, longest=300)
    assert only.cache == alone.cache and only.engine == found.engine, "our decoder makes the rollouts"


def test_several_processes_divide_a_steps_prompts_and_hold_gradients_twice(model):
    words = ["trainer.prompts_per_step=6", "trainer.micro_batch_prompts=1", "grpo.group_size=4"]
    here, parameters = memory.model_of(model), model.num_parameters()
    found = {
        n: memory.of_run(config_of(*words, f"trainer.processes={n}"), here, parameters, longest=300) for n in (1, 2)
    }
    assert found[1].cache == 2 * found[2].cache > 0
    assert found[2].gradients == 2 * found[1].gradients, "DistributedDataParallel's buckets"


def test_under_deepspeed_policy_and_reference_are_in_bfloat16_and_it_learns_in_float32(model):
    words = ["trainer=zero3", "trainer.bf16=true", "grpo.beta=0.04"]
    parameters = model.num_parameters()
    found = memory.of_run(config_of(*words), memory.model_of(model), parameters, longest=300)
    assert (found.weights, found.reference) == (2 * parameters, 2 * parameters)
    assert (found.gradients, found.optimizer) == (4 * parameters, 12 * parameters)


def test_prompts_of_an_evaluation_fill_the_room_that_is_left(model):
    """Counted by hand for P = 300, four draws of C = 100."""
    here = replace(memory.model_of(model), joins_keys=False)
    d, longest, draws, completion = here.dimensions, 300, 4, 100
    keys_and_values = d.layers * 2 * d.key_width * 4 * (4 * longest + draws * completion)
    layer = longest * 4 * (3 * d.feed_forward + 8 * d.width)
    each = keys_and_values + layer + draws * d.vocabulary * 12
    for wanted in (1, 7):
        room = math.ceil((1000 + wanted * each) / memory.USABLE)
        how = {"beside": 1000, "draws": draws, "longest": longest, "completion": completion, "bf16": False}
        assert memory.prompts_that_fit(here, **how, room=room) == wanted
        assert memory.prompts_that_fit(here, **how, room=room - 2) == max(1, wanted - 1)
    assert memory.prompts_that_fit(here, **how, room=0) == 1
    assert memory.prompts_that_fit(here, **how, room=10**12) == memory.MOST_PROMPTS

"""Trainers for the tests of this folder, and what they count."""

from collections import Counter
from dataclasses import replace

import pytest

from echoink.config.schema import Adapter
from echoink.models.loading import lora
from echoink.planning.steps import training_steps
from echoink.rewards.terms import make_rewards
from echoink.rewards.types import Match, Rule
from echoink.training.host import Policy, Scoring
from echoink.training.integration_reward import IntegrationReward
from echoink.training.trainer import EchoInkTrainer
from echoink.training.trl_config import arguments
from tests.helpers.configs import config_of
from tests.helpers.tiny import tiny_model, tiny_reference
from tests.helpers.trainers import G


@pytest.fixture
def make_trainer(make_processor, samples, tmp_path):
    """A trainer on a model of its own; `settings` are overrides of the configuration."""

    def make(
        *settings,
        model=None,
        reference=None,
        chosen=samples[:6],
        workers=0,
        extra_rewards=(),
        rewards=None,
        modality_dropout=0.0,
        rule=Rule.counterfactual,
        rule_weight=0.0,
        kind=EchoInkTrainer,
        **extra,
    ):
        config = config_of(
            f"grpo.group_size={G}",
            "generation.max_new_tokens=24",
            "trainer.prompts_per_step=2",
            "trainer.micro_batch_prompts=2",
            *settings,
        )
        model = model or tiny_model()
        processor = replace(make_processor(model), workers=workers)
        wanted = replace(config.reward, integration=rule, lambda_int=rule_weight, match=Match.lenient)
        rows = config.trainer.micro_batch_prompts * config.grpo.group_size
        steps = training_steps(config.trainer, config.grpo.updates_per_rollout, len(chosen))
        args = arguments(
            config.trainer, config.grpo, config.generation, seed=config.seed, steps=steps, folder=str(tmp_path)
        )
        adapter = (
            lora(4, 8, config.adapter.dropout, ("q_proj", "v_proj")) if config.adapter.kind is Adapter.lora else None
        )
        engine = {name: extra.pop(name) for name in ("engine", "correction") if name in extra}
        return kind(
            Policy(model, None if adapter else reference or tiny_reference(), processor, adapter, **engine),
            chosen,
            Scoring(
                rewards or make_rewards(wanted, processor.prompt.thinks, extra_rewards),
                IntegrationReward(wanted, processor, rows, chosen) if wanted.lambda_int else None,
            ),
            args,
            replace(config.grpo, modality_dropout=modality_dropout),
            **extra,
        )

    return make


@pytest.fixture
def counts():
    """What goes through towers, language model and head; `watch(model)` starts counting."""
    seen = Counter()

    def watch(model):
        def count(name, amount):
            def hook(module, args, kwargs):
                seen[name] += amount(args, kwargs)
                seen[f"{name} calls"] += 1

            return hook

        watched = {
            model.model.visual: ("patches", lambda a, k: len(a[0])),
            model.model.audio_tower: ("frames", lambda a, k: a[0].shape[1]),
            model.model.language_model: ("tokens", lambda a, k: k["inputs_embeds"][..., 0].numel()),
        }
        for module, (name, amount) in watched.items():
            module.register_forward_pre_hook(count(name, amount), with_kwargs=True)
        return seen

    watch.seen = seen
    return watch

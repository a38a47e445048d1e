"""A trainer on the embedded model, and what tests look at of it."""

import torch
from transformers import TrainerCallback

from echoink.rewards.accuracy import accuracy_reward
from echoink.rewards.format import format_reward
from echoink.training.metrics import metrics_of
from tests.helpers.tiny import tiny_model

G = 4


class Catch(TrainerCallback):
    """Keeps the metrics of every step."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **_):
        self.rows.append(metrics_of(logs))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def oracle(trainer, model, reference, ids, scored, weights=(1.0, 1.0), beta=0.05, scale="group"):
    """The paper's algorithm, one completion at a time, in float64; positions are transformers' own.

    Returns:
        The loss of Eq. 2, to be differentiated, and the advantages of Eq. 1.
    """
    rewards, terms = [], []
    for row, sample_id in enumerate(ids):
        sample = trainer._samples[sample_id]
        completion = scored["completion_ids"][row][scored["completion_mask"][row].bool()]
        text = trainer.processing_class.decode(completion, skip_special_tokens=True)
        accuracy = accuracy_reward(text, sample.problem_type, sample.options, sample.solution)
        rewards.append(weights[0] * accuracy + weights[1] * format_reward(text))
        prompt = trainer._prompt_processor(sample)
        inputs = {"input_ids": torch.cat([prompt.input_ids, completion])[None], **prompt.media}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        log_p, log_ref = (
            m(**inputs, use_cache=False)
            .logits[0, len(prompt.input_ids) - 1 : -1]
            .log_softmax(-1)
            .gather(1, completion[:, None])[:, 0]
            for m in (model, reference)
        )
        terms.append((log_p, log_ref.detach()))
    grouped = torch.tensor(rewards, dtype=torch.float64).view(-1, G)
    spread = {"group": grouped.std(1, keepdim=True) + 1e-4, "batch": grouped.std() + 1e-4, "none": 1.0}[scale]
    advantages = ((grouped - grouped.mean(1, True)) / spread).flatten()
    losses = []
    for advantage, (log_p, log_ref) in zip(advantages, terms, strict=True):
        ratio = (log_p - log_p.detach()).exp()
        d = log_ref - log_p
        objective = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) - beta * (d.exp() - d - 1)
        losses.append(-objective.mean())
    return torch.stack(losses).mean(), advantages


def one_step(make_trainer, samples, *settings, model=None, **extra):
    """Rollout and gradient of one step of three groups."""
    trainer = make_trainer(*settings, model=model or tiny_model(), chosen=samples[:3], **extra)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ids = [sample.id for sample in samples[:3] for _ in range(trainer.num_generations)]
    scored = trainer._generate_and_score_completions([{"prompt": id} for id in ids])
    loss = trainer._compute_loss(trainer.model, scored)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return trainer, scored, loss, gradient

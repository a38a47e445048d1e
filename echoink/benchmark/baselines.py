"""One GRPO step computed three ways on the same work: ours, plain rows as TRL computes them, and one group at a time.

Each system has the phases of a step, prefill (a part of the rollout), rollout, reference and update, and computes the
same log-probabilities. Completions are replayed: sampling costs the same for all and is left out.

Shapes: B prompts, G completions of each, R = B·G rows, P prompt and C completion tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from echoink.benchmark.workload import Workload
from echoink.models import logprobs
from echoink.models.batching import prompt_batch, row_media, row_positions
from echoink.models.encoders import encode_media, towers_learn
from echoink.models.family import Features
from echoink.models.logprobs import packed_logprobs
from echoink.rollout import generate as rollout
from echoink.rollout.decoder import Decoder
from echoink.rollout.sampling import Sampling


class Step:
    """What the systems share: model, work, and the loss of Eq. 2 on given log-probabilities.

    Args:
        model: the policy, after `install` and TRL's `add_fused_lm_head`; with an adapter, wrapped by PEFT.
        reference: a second model, or None where the reference is the policy with its adapter off.
        work: the prompts and completions.
        beta: weight of the KL term; with 0 only `OneGroupAtATime` computes a reference.
    """

    def __init__(self, model: torch.nn.Module, reference: torch.nn.Module | None, work: Workload, beta: float):
        self.model, self.reference, self.work, self.beta = model, reference, work, beta
        self.unwrapped = model.get_base_model() if isinstance(model, PeftModel) else model
        self.device = self.unwrapped.device
        self.ids, self.mask = work.completion_ids.to(self.device), work.mask.to(self.device)
        self.advantages = work.advantages.to(self.device)
        # A learning rate of 0 keeps the weights, so that every repetition computes the same.
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=0.0, weight_decay=0.0)
        self.reference_logps: Tensor | None = None

    def groups(self) -> Iterator[tuple[int, slice]]:
        """Each prompt's index and its rows."""
        for index in range(len(self.work.prompts)):
            yield index, slice(index * self.work.group, (index + 1) * self.work.group)

    def log_probabilities(self, model: torch.nn.Module, index: int, rows: slice) -> Tensor:
        """Log-probabilities of one group's completions: [G, C]."""
        raise NotImplementedError

    @torch.no_grad()
    def infer(self) -> None:
        """Compute the reference's log-probabilities."""
        if self.beta == 0 and not isinstance(self, OneGroupAtATime):
            return
        model = self.model if self.reference is None else self.reference
        with self.model.disable_adapter() if self.reference is None else nullcontext():
            self.reference_logps = torch.cat([self.log_probabilities(model, *group) for group in self.groups()])

    def update(self) -> None:
        """Forward, backward, and a step of AdamW."""
        self.model.train()
        for index, rows in self.groups():
            logps = self.log_probabilities(self.model, index, rows)
            self.loss(logps, rows).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, logps: Tensor, rows: slice) -> Tensor:
        """One group's share of the loss."""
        per_token = -(logps - logps.detach()).exp() * self.advantages[rows, None]
        if self.beta:
            d = self.reference_logps[rows] - logps
            per_token = per_token + self.beta * (d.exp() - d - 1)
        mask = self.mask[rows]
        return ((per_token * mask).sum(1) / mask.sum(1)).sum() / len(self.mask)


class SharedPrefix(Step):
    """Ours: the code that the trainer runs."""

    features: list[Features] | None = None
    decoder: Decoder | None = None

    def prefill(self) -> None:
        """Run the towers and the prompts, up to the logits of the first token."""
        rollout.prefill(self.unwrapped.eval(), self.work.prompts)

    def rollout(self) -> list[list[int]]:
        """Run the whole rollout; finished rows leave the batch."""
        with torch.no_grad():
            features = encode_media(self.unwrapped.model, self.work.prompts)
        self.features = None if towers_learn(self.unwrapped.model) else features
        script = self.work.completion_ids.view(len(self.work.prompts), self.work.group, -1).double()
        sampling = Sampling(1.0, 1.0, 0, script.shape[-1], end_ids=(self.unwrapped.generation_config.eos_token_id,))
        self.decoder = self.decoder or rollout.decoder_for(self.unwrapped)  # one for all repetitions, as in training
        temperatures = [1.0] * self.work.group
        return rollout.generate(
            self.unwrapped,
            self.work.prompts,
            script,
            temperatures=temperatures,
            sampling=sampling,
            features=features,
            pick=_replay,
            decoder=self.decoder,
        )

    def log_probabilities(self, model: torch.nn.Module, index: int, rows: slice) -> Tensor:
        prompt, features = self.work.prompts[index], self.features
        chosen = None if features is None else [features[index]]
        return packed_logprobs(
            model,
            [prompt],
            chosen,
            prompt_index=[0] * self.work.group,
            completion_ids=self.ids[rows],
            scored=self.mask[rows],
        )[0]


class PlainRows(Step):
    """As TRL 1.16 with its transformers backend: every row repeats its prompt and media, in rollout and loss.

    Args:
        checkpointing: recompute activations in the update, for a shape where they do not fit.
    """

    def __init__(self, *arguments, checkpointing: bool = False):
        super().__init__(*arguments)
        self.checkpointing = checkpointing

    def prefill(self) -> None:
        self._generate(1)

    def rollout(self) -> Tensor:
        return self._generate(self.mask.shape[1])

    def update(self) -> None:
        if self.checkpointing:
            self.unwrapped.activation_checkpointing_enable()
        super().update()
        if self.checkpointing:
            self.unwrapped.activation_checkpointing_disable()

    def _generate(self, tokens: int) -> Tensor:
        return self._decode([prompt for prompt in self.work.prompts for _ in range(self.work.group)], self.ids, tokens)

    def _decode(self, prompts: Sequence, script: Tensor, tokens: int, copies: int = 1) -> Tensor:
        batch = {name: value.to(self.device) for name, value in prompt_batch(prompts).items()}
        batch.pop("position_ids")  # generate() derives them
        # generate() returns copies only when it samples, here from the one token that the replay leaves
        sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0} if copies > 1 else {"do_sample": False}
        replay = LogitsProcessorList([_Replay(script, batch["input_ids"].shape[1])])
        return self.unwrapped.eval().generate(
            **batch, num_return_sequences=copies, max_new_tokens=tokens, **sampling, logits_processor=replay
        )

    def _rows(self, index: int, rows: slice) -> tuple[Tensor, Tensor]:
        prompt = self.work.prompts[index].input_ids.to(self.device).expand(self.work.group, -1)
        ids = torch.cat([prompt, self.ids[rows]], 1)
        return ids, torch.cat([torch.ones_like(prompt), self.mask[rows].long()], 1)

    def log_probabilities(self, model: torch.nn.Module, index: int, rows: slice) -> Tensor:
        ids, mask = self._rows(index, rows)
        found, _ = logprobs.plain_row_logprobs(
            model,
            self.work.prompts,
            [index] * self.work.group,
            input_ids=ids,
            attention_mask=mask,
            completion_width=self.mask.shape[1],
        )
        return found * self.mask[rows]


class OneGroupAtATime(PlainRows):
    """The work of the paper's public code, with the installed transformers.

    It goes group by group, computes a reference for any beta and the logits of every position, and uses gradient
    checkpointing. Its defects (positions in the loss, pictures in the rollout) are not reproduced.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments, checkpointing=True)

    def _generate(self, tokens: int) -> None:
        for index, rows in self.groups():
            self._decode([self.work.prompts[index]], self.ids[rows], tokens, self.work.group)

    def log_probabilities(self, model: torch.nn.Module, index: int, rows: slice) -> Tensor:
        ids, mask = self._rows(index, rows)
        prompt_index, width = [index] * self.work.group, self.mask.shape[1]
        media = row_media(self.work.prompts, prompt_index)
        positions = row_positions(self.work.prompts, prompt_index, ids.shape[1] - width, width)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.to(self.device),
            use_cache=False,
            **{name: value.to(self.device) for name, value in media.items()},
        ).logits[:, :-1]
        logps = torch.stack(  # row by row, as the public code does
            [row.log_softmax(-1).gather(1, tokens[1:, None])[:, 0] for row, tokens in zip(logits, ids, strict=True)]
        )
        return logps[:, -width:].float() * self.mask[rows]


def _replay(_logits: Tensor, script: Tensor, _temperature: Tensor, **_) -> Tensor:
    return script.long()


class _Replay(LogitsProcessor):
    def __init__(self, script: Tensor, prompt_width: int):
        self._script, self._prompt_width = script, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        column = self._script[:, input_ids.shape[1] - self._prompt_width]
        return torch.full_like(scores, float("-inf")).scatter_(1, column[:, None], 0.0)

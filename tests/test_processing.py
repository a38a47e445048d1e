"""Prompts as the model takes them: positions, padding, and that a batch is the same as its prompts one by one."""

from dataclasses import replace

import pytest
import torch

from echoink.errors import UserError
from echoink.processing import prompt_batch, row_media, row_positions


def logits_of(model, prompts, completions):
    """Log-probabilities of each row's completion, [R, C], computed with left-padded prompts."""
    batch = prompt_batch(prompts, 0)
    width, length = batch["input_ids"].shape[1], completions.shape[1]
    owner = range(len(prompts))
    with torch.no_grad():
        output = model.eval()(
            input_ids=torch.cat([batch["input_ids"], completions], 1),
            attention_mask=torch.cat([batch["attention_mask"], torch.ones_like(completions)], 1),
            position_ids=row_positions(prompts, owner, width, length),
            **row_media(prompts, owner),
        ).logits[:, width - 1 : -1]
    return output.log_softmax(-1).gather(2, completions.unsqueeze(2)).squeeze(2)


def test_media_tokens_and_positions(prompts, model):
    for prompt in prompts:
        assert (prompt.input_ids == model.config.image_token_id).sum() == 16
        assert (prompt.input_ids == model.config.audio_token_id).sum() == 25
        assert prompt.media["pixel_values"].shape == (64, 1176)
        # A 4x4 picture takes the positions of 4 tokens, not 16: text goes on at its largest coordinate plus one.
        assert prompt.next_position == len(prompt.input_ids) - 12


def test_a_batch_gives_the_log_probabilities_of_its_prompts_one_by_one(prompts, model):
    completions = torch.randint(20, 400, (len(prompts), 12), generator=torch.Generator().manual_seed(0))
    together = logits_of(model, prompts, completions)
    alone = torch.cat([logits_of(model, [p], completions[i : i + 1]) for i, p in enumerate(prompts)])
    assert (together - alone).abs().max() <= 1e-5


def test_positions_are_those_that_the_model_derives_itself(prompts, model):
    """Against transformers' own M-RoPE of prompt and completion as one text."""
    completion = torch.arange(30, 42)
    for prompt in prompts[:3]:
        ids = torch.cat([prompt.input_ids, completion])[None]
        derived, _ = model.get_rope_index(
            ids,
            image_grid_thw=prompt.media["image_grid_thw"],
            attention_mask=torch.ones_like(ids),
            audio_seqlens=prompt.media["feature_attention_mask"].sum(-1),
        )
        ours = row_positions([prompt], [0], len(prompt.input_ids), len(completion))
        assert torch.equal(ours, derived.to(ours.dtype))


def test_picture_and_sound_reach_the_model(prompts, model):
    completion = torch.randint(20, 400, (1, 8), generator=torch.Generator().manual_seed(0))
    before = logits_of(model, prompts[:1], completion)
    for name in ("pixel_values", "input_features"):
        changed = type(prompts[0])(
            prompts[0].input_ids,
            prompts[0].position_ids,
            prompts[0].media | {name: prompts[0].media[name].roll(1, -1)},
        )
        assert (logits_of(model, [changed], completion) - before).abs().max() > 1e-4


def test_padding_of_the_extractor_does_not_change_the_features(processor, samples):
    """The clip's own frames are those of a 30 s window, up to the last one."""
    from echoink.media import load_audio

    sound = load_audio(samples[0].audio, 10)
    extractor = processor.processor.feature_extractor
    long = extractor(sound, sampling_rate=16_000, padding="max_length", return_tensors="pt")["input_features"]
    ours = processor(samples[0]).media["input_features"]
    frames = len(sound) // 160
    assert torch.allclose(ours[..., :frames], long[..., :frames], atol=1e-5)


def test_a_prompt_over_its_cap_is_refused(processor, samples):
    small = replace(processor, caps=replace(processor.caps, prompt_tokens=50))
    with pytest.raises(UserError, match="sample 0: its prompt has .* the cap is 50"):
        small(samples[0])


def test_a_broken_file_names_the_sample(processor, samples, tmp_path):
    with pytest.raises(UserError, match="sample 0: picture not found"):
        processor(replace(samples[0], image=tmp_path / "gone.jpg"))

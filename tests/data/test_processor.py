"""Prompts as the model takes them: positions, padding, and that a batch is the same as its prompts one by one."""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from echoink.common.errors import UserError
from echoink.data.processor import Caps
from echoink.data.samples import DataType, Sample
from echoink.models.batching import prompt_batch, row_media, row_positions
from echoink.models.qwen2_5_omni import _seconds_per_part
from tests.conftest import VIDEO
from tests.helpers.files import picture, sound, video


def logits_of(model, prompts, completions):
    """Log-probabilities of each row's completion, [R, C], computed with left-padded prompts."""
    batch = prompt_batch(prompts)
    width, length = batch["input_ids"].shape[1], completions.shape[1]
    prompt_index = range(len(prompts))
    with torch.no_grad():
        output = model.eval()(
            input_ids=torch.cat([batch["input_ids"], completions], 1),
            attention_mask=torch.cat([batch["attention_mask"], torch.ones_like(completions)], 1),
            position_ids=row_positions(prompts, prompt_index, width, length),
            **row_media(prompts, prompt_index),
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
    from echoink.media.loaders import load_sound

    sound = load_sound(samples[0].audio, 10).samples
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


@pytest.fixture
def one_of_each(tmp_path):
    """A sample of every data type, from files."""
    made = {
        "image": lambda: picture(tmp_path / "p.png"),
        "audio": lambda: sound(tmp_path / "s.wav", seconds=0.7),
        "video": lambda: video(tmp_path / "v.mp4", seconds=2.5),
    }
    return [
        Sample(
            kind.value, "What?", ("A. x", "B. y"), "A", data_type=kind, **{name: made[name]() for name in kind.media}
        )
        for kind in DataType
    ]


def test_a_soundtrack_is_woven_into_its_video(processor, tmp_path):
    """Two seconds of frames, two of sound, the next frames, the rest of the sound; both on one clock of 25 a second."""
    config = processor.model.config
    clip = video(tmp_path / "v.mp4", seconds=5)  # four frames, two tokens of time at 0 and 2.5 s
    prompt = processor(Sample("1", "What?", ("A. x", "B. y"), "A", data_type=DataType.video_audio, video=clip))
    kinds = {config.video_token_id: "v", config.audio_token_id: "a"}
    row = [kinds.get(token, ".") for token in prompt.input_ids.tolist()]
    runs = "".join(kind for kind, before in zip(row, [None, *row], strict=False) if kind != before)
    assert runs == ".vava."
    assert row.count("a") == pytest.approx(125, abs=3)
    times = prompt.position_ids[0]
    seen, heard = ([t for t, kind in zip(times.tolist(), row, strict=True) if kind == which] for which in "va")
    assert seen[0] == heard[0], "they start together"
    assert sorted(set(seen)) == [seen[0], seen[0] + 62] and heard == list(range(heard[0], heard[0] + len(heard)))


def test_sound_does_not_tear_frames_that_are_far_apart(processor, tmp_path):
    """Four frames of 12 s: a grid of two every six seconds, where sound is woven in every two seconds otherwise."""
    config, caps = processor.model.config, Caps(30.0, VIDEO, 4096)
    clip = video(tmp_path / "v.mp4", seconds=12)
    sample = Sample("1", "What?", ("A. x", "B. y"), "A", data_type=DataType.video_audio, video=clip)
    prompt = replace(processor, caps=caps)(sample)
    kinds = {config.video_token_id: "v", config.audio_token_id: "a"}
    row = "".join(kinds.get(token, ".") for token in prompt.input_ids.tolist()).strip(".")
    assert [len(frames) for frames in re.findall("v+", row)] == [row.count("v") // 2] * 2, "none is torn"
    assert [len(sound) for sound in re.findall("a+", row)] == [150, pytest.approx(150, abs=3)]
    times = [t for t, kind in zip(prompt.position_ids[0].tolist(), row_of(prompt, kinds), strict=True) if kind == "v"]
    assert sorted({t - times[0] for t in times}) == [0, 150] and config.seconds_per_chunk == 2


def row_of(prompt, kinds):
    return [kinds.get(token, ".") for token in prompt.input_ids.tolist()]


@pytest.mark.parametrize(
    ("seconds", "grids", "part"), [(1.0, 150, 2), (2.0, 8, 2), (2.5, 2, 2), (2.5, 8, 3), (3.75, 8, 4), (7.5, 8, 8)]
)
def test_a_part_of_a_video_with_sound_has_frames(seconds, grids, part):
    assert _seconds_per_part(seconds, grids) == part


@pytest.mark.parametrize("path", ["packed", "plain"])
def test_every_data_type_in_one_batch_gives_what_each_gives_alone(processor, model, one_of_each, path):
    """Log-probabilities of two completions per prompt: the mixed batch against one prompt at a time."""
    from trl.trainer.utils import add_fused_lm_head

    from echoink.models import logprobs
    from echoink.models.encoders import encode_media
    from echoink.models.logprobs import packed_logprobs

    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    prompts = [processor(sample) for sample in one_of_each]
    completions = torch.randint(20, 400, (2 * len(prompts), 5), generator=torch.Generator().manual_seed(0))

    def logps(chosen):
        rows = [2 * index + g for index in chosen for g in (0, 1)]
        prompt_index = [place for place, _ in enumerate(chosen) for _ in (0, 1)]
        own = [prompts[index] for index in chosen]
        with torch.no_grad():
            if path == "packed":
                features = encode_media(model.model, own)
                return packed_logprobs(
                    model,
                    own,
                    features,
                    prompt_index=prompt_index,
                    completion_ids=completions[rows],
                    scored=torch.ones(len(rows), 5).bool(),
                )[0]
            batch = prompt_batch([own[index] for index in prompt_index])
            ids = torch.cat([batch["input_ids"], completions[rows]], 1)
            mask = torch.cat([batch["attention_mask"], torch.ones(len(rows), 5, dtype=torch.long)], 1)
            return logprobs.plain_row_logprobs(
                model, own, prompt_index, input_ids=ids, attention_mask=mask, completion_width=5
            )[0]

    together = logps(range(len(prompts)))
    alone = torch.cat([logps([index]) for index in range(len(prompts))])
    assert torch.allclose(together, alone, atol=1e-5)


def test_every_data_type_rolls_out_together_as_alone(processor, model, one_of_each):
    from echoink.models.loading import end_ids
    from echoink.rollout.generate import generate
    from echoink.rollout.sampling import Sampling, uniforms

    sampling = Sampling(1.0, 0.95, 50, 12, end_ids(model, processor.processor))

    def texts(samples):
        noise = torch.stack([uniforms(0, 0, sample.id, group_size=2, length=12) for sample in samples])
        return generate(
            model,
            [processor(s) for s in samples],
            noise,
            temperatures=[1.0, 1.0],
            sampling=sampling,
        )

    assert texts(one_of_each) == [row for sample in one_of_each for row in texts([sample])]


def test_a_template_that_forgets_a_medium_or_adds_one_is_refused(processor, one_of_each):
    words = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    for template, kind, says in (
        (words, "image", r"sample image: the processor refuses the prompt: .*<\|IMAGE\|>"),
        (words, "audio", r"sample audio: the processor refuses the prompt: .*<\|AUDIO\|>"),
        (words, "video_audio", r"the processor refuses the prompt: .*<\|VIDEO\|>"),
        (f"<|AUDIO|>{words}", "text", r"sample text: the processor refuses the prompt: .*<\|AUDIO\|>"),
    ):
        other = deepcopy(processor.processor)
        other.chat_template = template
        (sample,) = (one for one in one_of_each if one.id == kind)
        with pytest.raises(UserError, match=says):
            replace(processor, processor=other)(sample)


def test_a_question_with_a_models_placeholder_is_refused_by_its_sample(processor, samples):
    with pytest.raises(UserError, match=r"sample 0: the processor refuses the prompt: .*<\|IMAGE\|>"):
        processor(replace(samples[0], problem="What does <|IMAGE|> mean?"))


def test_a_prompt_of_exactly_its_cap_is_taken(processor, samples):
    tokens = len(processor(samples[0]).input_ids)
    same, less = (replace(processor, caps=replace(processor.caps, prompt_tokens=n)) for n in (tokens, tokens - 1))
    assert len(same(samples[0]).input_ids) == tokens
    with pytest.raises(UserError, match=f"the cap is {tokens - 1}"):
        less(samples[0])

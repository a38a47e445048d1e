"""The rollout: right samples, noise that no batching changes, and no work done twice."""

from dataclasses import replace

import pytest
import torch

from echoink.rollout import sampling
from echoink.rollout.generate import generate
from echoink.rollout.sampling import Sampling, choose, seed_of, uniforms

SAMPLING = Sampling(temperature=1.0, top_p=0.95, top_k=50, max_new_tokens=24)


def noise_of(count, group, seed=0):
    return torch.stack(
        [uniforms(seed, 0, str(index), group_size=group, length=SAMPLING.max_new_tokens) for index in range(count)]
    )


def ends(model):
    configured = model.generation_config.eos_token_id
    return (configured,) if isinstance(configured, int) else tuple(configured)


def run(model, prompts, noise, temperatures, sampling=SAMPLING):
    return generate(model, prompts, noise, temperatures=temperatures, sampling=replace(sampling, end_ids=ends(model)))


def test_greedy_is_what_transformers_generates(model, prompts):
    from echoink.models.batching import prompt_batch

    for prompt in prompts[:4]:
        batch = prompt_batch([prompt])
        batch.pop("position_ids")  # let transformers derive them
        expected = model.eval().generate(**batch, do_sample=False, max_new_tokens=24)[0, len(prompt.input_ids) :]
        assert run(model, [prompt], noise_of(1, 1), [0.0])[0] == expected.tolist()


def test_samples_do_not_depend_on_batch_group_or_order(model, prompts):
    together = run(model, prompts, noise_of(8, 4), [1.0] * 4)
    assert len(together) == 32
    for index in (0, 5):
        alone = run(model, [prompts[index]], noise_of(8, 4)[index : index + 1], [1.0] * 4)
        assert alone == together[4 * index : 4 * index + 4]
    fewer = run(model, prompts, noise_of(8, 2), [1.0] * 2)
    assert fewer[::2] == together[::4]
    reversed_ = run(model, prompts[::-1], noise_of(8, 4).flip(0), [1.0] * 4)
    assert reversed_[:4] == together[28:]


def test_greedy_and_sampled_share_a_call(model, prompts):
    mixed = run(model, prompts[:3], noise_of(3, 2), [1.0, 0.0])
    assert mixed[1::2] == run(model, prompts[:3], noise_of(3, 1), [0.0])
    assert mixed[0::2] == run(model, prompts[:3], noise_of(3, 1), [1.0])


def test_completions_end_at_an_end_token_or_are_cut(model, prompts):
    for completion in run(model, prompts, noise_of(8, 4), [1.0] * 4):
        assert not set(completion[:-1]) & set(ends(model))
        assert completion[-1] in ends(model) or len(completion) == 24


def test_each_prompt_is_encoded_and_prefilled_once(model, prompts):
    """Counts patches, mel frames, prompt tokens and head rows of a rollout of 3 prompts with G = 4."""
    seen = {"patches": 0, "frames": 0, "tokens": 0, "head": 0, "calls": 0}

    def count(name, amount):
        def hook(module, args, kwargs):
            seen[name] += amount(args, kwargs)

        return hook

    hooks = [
        model.model.visual.register_forward_pre_hook(count("patches", lambda a, k: len(a[0])), with_kwargs=True),
        model.model.audio_tower.register_forward_pre_hook(
            count("frames", lambda a, k: a[0].shape[1]), with_kwargs=True
        ),
        model.model.language_model.register_forward_pre_hook(
            count("tokens", lambda a, k: k["inputs_embeds"][..., 0].numel()), with_kwargs=True
        ),
        model.lm_head.register_forward_pre_hook(count("head", lambda a, k: a[0][..., 0].numel()), with_kwargs=True),
    ]
    completions = run(model, prompts[:3], noise_of(3, 4), [1.0] * 4)
    for hook in hooks:
        hook.remove()
    width = max(len(prompt.input_ids) for prompt in prompts[:3])
    decoded = sum(len(completion) - 1 for completion in completions)
    assert seen["patches"] == 3 * 64
    assert seen["frames"] == sum(int(prompt.media["feature_attention_mask"].sum()) for prompt in prompts[:3])
    assert seen["tokens"] == 3 * width + decoded  # finished rows have left
    assert seen["head"] == 3 + decoded


def test_the_model_keeps_its_mode(model, prompts):
    for mode in (True, False):
        model.train(mode)
        run(model, prompts[:1], noise_of(1, 1), [1.0])
        assert model.training is mode


def test_noise_is_keyed():
    base = uniforms(0, 3, "7", group_size=4, length=10)
    assert torch.equal(uniforms(0, 3, "7", group_size=2, length=6), base[:2, :6])
    for other in (
        uniforms(1, 3, "7", group_size=4, length=10),
        uniforms(0, 4, "7", group_size=4, length=10),
        uniforms(0, 3, "8", group_size=4, length=10),
    ):
        assert not torch.equal(other, base)
    assert (base >= 0).all() and (base < 1).all()


def test_choose_inverts_the_cumulative_distribution():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for noise, token in ((0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 2), (0.999, 2)):
        picked = choose(logits, torch.tensor([noise]), torch.ones(1), top_p=1.0, top_k=0)
        assert picked.tolist() == [token]


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [(1.0, 0, [0.5, 0.3, 0.2]), (1.0, 2, [0.625, 0.375]), (0.5, 0, [1.0]), (0.6, 0, [0.625, 0.375]), (0.01, 0, [1.0])],
)
def test_top_k_and_top_p_renormalize_what_they_keep(top_p, top_k, kept):
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(10_000, 1)
    noise = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    picked = choose(logits, noise, torch.ones(10_000), top_p=top_p, top_k=top_k)
    shares = torch.bincount(picked, minlength=3)[: len(kept)] / 10_000
    assert shares.tolist() == pytest.approx(kept, abs=2e-3)


def test_filters_are_those_of_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 60, generator=generator) * 2
    scores = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(20)(None, TemperatureLogitsWarper(0.7)(None, logits)))
    allowed = set(scores.isfinite().nonzero()[:, 1].tolist())
    noise = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    picked = choose(logits.repeat(4000, 1), noise, torch.full((4000,), 0.7), top_p=0.8, top_k=20)
    assert set(picked.tolist()) == allowed
    shares = torch.bincount(picked, minlength=60) / 4000
    assert torch.allclose(shares, scores.softmax(-1)[0], atol=1e-3)


def test_media_placeholders_are_never_sampled(model, prompts):
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token equally likely
    wide = Sampling(1.0, 1.0, 0, 24)
    placeholders = {model.config.image_token_id, model.config.audio_token_id, model.config.video_token_id}
    tokens = [token for row in run(model, prompts, noise_of(8, 8), [1.0] * 8, wide) for token in row]
    assert len(tokens) > 500 and not placeholders & set(tokens)


def test_a_token_of_probability_zero_is_not_taken_at_noise_zero():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0]])
    assert choose(logits, torch.zeros(1), torch.ones(1), top_p=1.0, top_k=0).item() == 1


def test_top_k_may_be_larger_than_the_vocabulary():
    assert choose(torch.tensor([[0.0, 9.0]]), torch.tensor([0.5]), torch.ones(1), top_p=1.0, top_k=50).item() == 1


def test_a_nucleus_of_a_large_vocabulary(monkeypatch):
    """Of four tokens two are looked at first. A row whose nucleus is larger needs all."""
    peaked, flat = torch.tensor([0.7, 0.2, 0.06, 0.04]).log(), torch.tensor([0.3, 0.3, 0.2, 0.2]).log()
    noise = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]

    def shares(rows, top_p):
        picked = choose(
            torch.cat([row.repeat(1000, 1) for row in rows]),
            noise.repeat(len(rows)),
            torch.ones(1000 * len(rows)),
            top_p=top_p,
            top_k=0,
        )
        return [(torch.bincount(each, minlength=4) / 1000).tolist() for each in picked.split(1000)]

    monkeypatch.setattr(sampling, "_FEW", 2)
    # 0.9 of the peaked row are its first two, 7/9 and 2/9; of the flat row all four are needed
    assert shares([peaked], 0.85)[0] == pytest.approx([7 / 9, 2 / 9, 0, 0], abs=2e-3)
    found = shares([peaked, flat], 0.85)
    assert found[0] == pytest.approx([7 / 9, 2 / 9, 0, 0], abs=2e-3)
    assert found[1] == pytest.approx([0.3, 0.3, 0.2, 0.2], abs=2e-3)
    # 0.65 of the peaked row is the first alone: the shares are of the whole vocabulary, not of the two
    assert shares([peaked], 0.72)[0] == pytest.approx([7 / 9, 2 / 9, 0, 0], abs=2e-3)


def test_each_completion_and_each_step_has_noise_and_a_seed_of_its_own():
    assert len({tuple(row) for row in uniforms(0, 3, "7", group_size=4, length=10).tolist()}) == 4
    seeds = {seed_of(*key) for key in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))}
    assert len(seeds) == 4 and max(seeds) < 2**62


def test_temperatures_stay_with_their_rows_when_others_leave(model, prompts):
    longer = replace(SAMPLING, max_new_tokens=64)
    noise = torch.stack([uniforms(0, 0, str(i), group_size=2, length=64) for i in range(8)])
    mixed = run(model, prompts, noise, [1.0, 0.0], longer)
    assert len({len(row) for row in mixed}) > 2, "wants rows that leave"
    assert mixed[0::2] == run(model, prompts, noise[:, :1], [1.0], longer)
    assert mixed[1::2] == run(model, prompts, noise[:, 1:], [0.0], longer)

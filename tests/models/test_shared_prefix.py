"""The packed row against plain rows: same log-probabilities, same gradients, whatever the media, with less work."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, Qwen2_5OmniThinkerForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from echoink.benchmark.measure import peak_memory
from echoink.common.errors import UserError
from echoink.config.paths import TINY
from echoink.data.processor import encode
from echoink.models import attention, logprobs, shared_prefix
from echoink.models.encoders import encode_media, same_towers, towers_learn
from echoink.models.loading import load_model, load_processor, lora
from echoink.models.logprobs import packed_logprobs, without_silent_groups
from echoink.models.shared_prefix import Layout, install, pack

TARGETS = ("q_proj", "v_proj", "down_proj")
KINDS = {
    "image_audio": ("image", "audio"),
    "image": ("image",),
    "audio": ("audio",),
    "video": ("video",),
    "video_audio": ("video", "audio"),
    "text": (),
}


def prompt_of(kinds, model, seed, words):
    """A prompt with noise for media; size and length differ with the seed."""
    rng = np.random.default_rng(seed)
    made = {
        "image": lambda: Image.fromarray(rng.integers(0, 256, (112, 84 + 28 * (seed % 2), 3), dtype=np.uint8)),
        "audio": lambda: rng.standard_normal(12_000 + 2_000 * seed).astype(np.float32),
        "video": lambda: rng.integers(0, 256, (4, 3, 112, 112), dtype=np.uint8),
    }
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": " ".join(["hear"] * words)}]
    media = {kind: made[kind]() for kind in kinds}
    return encode(load_processor("tiny", 112 * 112, 112 * 112), model, [{"role": "user", "content": content}], **media)


def prompts_of(kind, model):
    """Three ragged prompts; `mixed` has one of each kind."""
    names = list(KINDS) if kind == "mixed" else [kind] * 3
    return [prompt_of(KINDS[name], model, seed, 3 + 4 * seed) for seed, name in enumerate(names)]


def ragged(count, group, seed=0):
    """Completions of 1 to 12 tokens, padded on the right: ids and mask [R, C]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (count * group,), generator=generator)
    lengths[0], lengths[1] = 12, 1
    mask = torch.arange(12) < lengths.unsqueeze(1)
    return torch.randint(20, 400, (count * group, 12), generator=generator) * mask, mask


def both(model, prompts, features, completion_ids, mask, group):
    """Log-probabilities and gradients of the learning weights: packed, then in plain rows."""
    prompt_index = [index for index in range(len(prompts)) for _ in range(group)]
    width = max(len(prompt.input_ids) for prompt in prompts)
    ids = torch.zeros((len(prompt_index), width + mask.shape[1]), dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, index in enumerate(prompt_index):
        tokens = prompts[index].input_ids
        ids[row, width - len(tokens) : width], attention[row, width - len(tokens) : width] = tokens, 1
    ids[:, width:], attention[:, width:] = completion_ids, mask.long()
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(7)) * mask
    found = []
    for logps, _ in (
        packed_logprobs(
            model, prompts, features, prompt_index=prompt_index, completion_ids=completion_ids, scored=mask
        ),
        logprobs.plain_row_logprobs(
            model, prompts, prompt_index, input_ids=ids, attention_mask=attention, completion_width=mask.shape[1]
        ),
    ):
        learning = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad((logps * weight).sum(), learning, allow_unused=True)
        found.append((logps * mask, [g for g in gradients if g is not None]))
    return found


def distance(one, other):
    one, other = (torch.cat([g.flatten() for g in gradients]) for gradients in (one, other))
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize(("kind", "checkpointing"), [*((kind, False) for kind in [*KINDS, "mixed"]), ("mixed", True)])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_log_probabilities_and_gradients_are_those_of_plain_rows(model, kind, adapter, checkpointing):
    prompts = prompts_of(kind, model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    thinker = model
    if adapter:
        model = get_peft_model(model, lora(4, 8, 0.0, TARGETS))
        with torch.no_grad():  # away from zero, where an adapter starts
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    model.train()
    if checkpointing:
        thinker.activation_checkpointing_enable()
    ids, mask = ragged(len(prompts), 3)
    with torch.no_grad():
        features = encode_media(thinker.model, prompts) if adapter else None
    packed, plain = both(model, prompts, features, ids, mask, 3)
    assert (packed[0] - plain[0]).abs().max() <= 1e-5
    assert plain[0].abs().max() > 1
    assert len(packed[1]) == len(plain[1]) and distance(packed[1], plain[1]) <= 1e-5
    if adapter:  # the reference is the same model with the adapter off
        prompt_index = [index for index in range(len(prompts)) for _ in range(3)]
        with torch.no_grad(), model.disable_adapter():
            off, _ = packed_logprobs(
                model, prompts, features, prompt_index=prompt_index, completion_ids=ids, scored=mask
            )
        untouched = load_model("tiny")
        add_fused_lm_head(untouched)
        with torch.no_grad():
            expected, entropy = packed_logprobs(
                untouched, prompts, None, prompt_index=prompt_index, completion_ids=ids, scored=mask
            )
        assert entropy is None and (off - expected).abs().max() <= 1e-5
        assert (off - packed[0]).abs().max() > 1e-3


def test_entropies_are_those_of_plain_rows(model, prompts):
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids, mask = ragged(2, 3)
    with torch.no_grad():
        _, entropy = packed_logprobs(
            model, prompts[:2], None, prompt_index=[0, 0, 0, 1, 1, 1], completion_ids=ids, scored=mask
        )
        for row in range(6):
            prompt, length = prompts[row // 3], int(mask[row].sum())
            tokens = torch.cat([prompt.input_ids, ids[row, :length]])[None]
            logits = model(tokens, attention_mask=torch.ones_like(tokens), **prompt.media).logits[0, -length - 1 : -1]
            expected = torch.distributions.Categorical(logits=logits).entropy()
            assert (entropy[row, :length] - expected).abs().max() <= 1e-5
            assert (entropy[row, length:] == 0).all()


@pytest.mark.parametrize("kernel", ["by_parts", "by_blocks"])
def test_both_kernels_follow_the_rule(kernel):
    """Against one dense masked attention over the whole row, with fewer key heads than query heads."""
    layout = Layout(((5, (3, 1, 4)), (2, (2,)), (7, (1, 1))))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, layout.tokens, 16, generator=generator) for heads in (4, 2, 2))
    index = torch.arange(layout.tokens)
    allowed = layout.allowed("cpu")(0, 0, index[:, None], index[None])
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, enable_gqa=True, scale=0.3
    )
    assert (getattr(shared_prefix, kernel)(query, key, value, layout, 0.3) - expected).abs().max() <= 1e-6


class Seen(TorchDispatchMode):
    """Operations, each with the shape and type of its first tensor."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        of = next((each for each in args if isinstance(each, torch.Tensor)), None)
        result = function(*args, **(kwargs or {}))
        shape = result.shape if isinstance(result, torch.Tensor) else None
        self.calls.append((function.__name__.split(".")[0], shape, of is not None and of.dtype))
        return result


def test_no_group_has_a_gradient_of_the_whole_rows_size_and_attention_is_float32_under_autocast():
    layout = Layout(((20, (3, 5)), (31, (4, 4)), (9, (2, 6))))
    query = torch.randn(1, 4, layout.tokens, 8, dtype=torch.bfloat16, requires_grad=True)
    key, value = (torch.randn(1, 2, layout.tokens, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    with Seen() as seen, torch.autocast("cpu", torch.bfloat16):
        found = shared_prefix.by_parts(query, key, value, layout=layout, scale=0.3)
        found.sum().backward()
    assert found.dtype is torch.bfloat16 and found.shape == query.shape
    whole = [name for name, shape, _ in seen.calls if name == "slice_backward" and layout.tokens in shape]
    assert not whole
    attends = [dtype for name, _, dtype in seen.calls if "scaled_dot_product" in name]
    assert len(attends) >= 12 and set(attends) == {torch.float32}  # two a group, forward and backward
    wanted = shared_prefix.by_parts(*(each.detach().float() for each in (query, key, value)), layout, 0.3)
    assert torch.equal(found, wanted.bfloat16())


def test_the_rule_by_hand():
    layout = Layout(((2, (2, 1)), (1, (1,))))
    index = torch.arange(layout.tokens)
    # two tokens of one prefix, one of another, then completions of 2, 1 and 1 tokens
    assert layout.allowed("cpu")(0, 0, index[:, None], index[None]).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 0, 1],
    ]
    assert layout.scored == 4


def test_blocks_of_different_groups_and_completions_are_skipped():
    layout = Layout(((256, (128, 128, 128)), (256, (128,))))
    mask = layout.block_mask(torch.device("cpu"))
    blocks = mask.to_dense()[0, 0].int().tolist()
    assert blocks == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 0, 0, 1],
    ]


def test_a_packed_row_by_hand(prompts):
    first, second = prompts[:2]
    packed = pack([first, second], [[torch.tensor([30, 31, 32]), torch.tensor([40])], [torch.tensor([50, 51])]])
    last, other = int(first.input_ids[-1]), int(second.input_ids[-1])
    prefix = len(first.input_ids) + len(second.input_ids) - 2
    assert packed.input_ids[0, prefix : prefix + 4].tolist() == [last, 30, 31, last]
    assert packed.input_ids[0, -2:].tolist() == [other, 50]
    assert packed.labels.tolist() == [[30, 31, 32, 40, 50, 51]]
    start = first.next_position
    assert packed.position_ids[1, 0, prefix : prefix + 4].tolist() == [start - 1, start, start + 1, start - 1]
    assert packed.input_ids.shape[1] == len(first.input_ids) + len(second.input_ids) - 2 + 6


def test_a_packed_row_is_as_long_as_its_distinct_tokens_and_the_head_sees_completions_only(model, prompts):
    add_fused_lm_head(model)
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    model.model.register_forward_hook(lambda _, args, output: seen.append(output.last_hidden_state.shape[1]))
    ids, mask = ragged(3, 4)
    packed_logprobs(model, prompts[:3], None, prompt_index=[0] * 4 + [1] * 4 + [2] * 4, completion_ids=ids, scored=mask)
    completion_tokens = int(mask.sum())
    assert seen == [sum(len(p.input_ids) - 1 for p in prompts[:3]) + completion_tokens, completion_tokens]


def test_the_loss_takes_at_most_half_the_memory_of_plain_rows(model, monkeypatch):
    """Peak of what forward and backward allocate, P about 1,000, C = 200, G = 16, no checkpointing."""
    # TRL's head works in a buffer of 4,096 tokens x 32,768 entries; this vocabulary has 498.
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 512)
    prompt = prompt_of(("image", "audio"), model, 1, 950)
    assert abs(len(prompt.input_ids) - 1_000) <= 30
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.train()
    completions = torch.randint(20, 400, (16, 200), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([prompt.input_ids.expand(16, -1), completions], 1)

    def packed():
        return packed_logprobs(
            model,
            [prompt],
            None,
            prompt_index=[0] * 16,
            completion_ids=completions,
            scored=torch.ones_like(completions).bool(),
        )

    def plain():
        return logprobs.plain_row_logprobs(
            model, [prompt], [0] * 16, input_ids=ids, attention_mask=torch.ones_like(ids), completion_width=200
        )

    def peak(forward):
        return peak_memory(lambda: forward()[0].sum().backward(), torch.device("cpu"))

    assert peak(packed) <= 0.4 * peak(plain)


def test_silent_groups_leave_a_token_only_where_a_weight_would_otherwise_see_no_gradient(model):
    prompts = prompts_of("mixed", model)  # image_audio, image, audio, video, video_audio, text
    prompt_index = [index for index in range(6) for _ in range(2)]
    mask = torch.ones((12, 5), dtype=torch.bool)

    def kept(loud):
        silent = torch.tensor([index not in loud for index in prompt_index])
        tokens = without_silent_groups(prompts, prompt_index, mask, silent).sum(1).view(6, 2)
        return tokens.tolist()

    everything, nothing, witness = [5, 5], [0, 0], [1, 0]
    assert kept({0, 1, 2, 3, 4, 5}) == [everything] * 6
    assert kept({0}) == [everything, nothing, nothing, witness, nothing, nothing]
    assert kept({5}) == [witness, nothing, nothing, witness, nothing, everything]
    assert kept({4}) == [witness, nothing, nothing, nothing, everything, nothing]
    assert kept(set()) == [witness, nothing, nothing, witness, nothing, nothing]


def test_towers_are_compared_and_their_learning_is_seen(model):
    assert towers_learn(model.model)
    frozen = load_model("tiny", freeze=("audio", "vision"))
    assert not towers_learn(frozen.model) and towers_learn(load_model("tiny", freeze=("audio",)).model)
    assert not towers_learn(get_peft_model(load_model("tiny"), lora(2, 4, 0.0, TARGETS)).get_base_model().model)
    assert same_towers(model.model, frozen.model)
    with torch.no_grad():
        next(frozen.model.visual.parameters()).view(-1)[0] += 1
    assert not same_towers(model.model, frozen.model)


def test_features_of_a_batch_are_those_of_its_prompts_one_by_one(model):
    prompts = prompts_of("mixed", model)
    with torch.no_grad():
        together = encode_media(model.model, prompts)
        for prompt, found in zip(prompts, together, strict=True):
            alone = encode_media(model.model, [prompt])[0]
            assert set(alone) == set(found)
            assert all((alone[name] - found[name]).abs().max() <= 1e-5 for name in alone)
    assert [set(found) for found in together] == [set(kinds) for kinds in KINDS.values()]


@pytest.mark.parametrize("what", ["sliding windows", "dropout"])
def test_a_model_that_sharing_would_change_is_refused(what):
    config = AutoConfig.from_pretrained(TINY)
    text = config.get_text_config()
    if what == "dropout":
        text.attention_dropout = 0.1
    else:
        text.layer_types = ["sliding_attention", *text.layer_types[1:]]
    with pytest.raises(UserError, match=f"attention has {what}"):
        install(Qwen2_5OmniThinkerForConditionalGeneration(config))


def test_a_copy_of_a_model_computes_with_its_own_weights(model, prompts):
    ids, copied = prompts[0].input_ids[None], copy.deepcopy(model)
    with torch.no_grad():
        before = model(ids).logits
        copied.lm_head.weight.zero_()
        for weight in copied.model.parameters():
            weight.zero_()
        assert copied(ids).logits.abs().max() == 0
        hidden = copied.model(ids).last_hidden_state
        assert hidden.abs().max() == 0 and torch.equal(model(ids).logits, before)


def test_a_saved_model_knows_nothing_of_sharing(model, tmp_path):
    assert model.config.get_text_config()._attn_implementation == attention.NAME
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    plain = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path)
    assert plain.config.get_text_config()._attn_implementation == "sdpa"


def test_silent_groups_of_text_alone_still_compute_one_token():
    prompts = [SimpleNamespace(media={}), SimpleNamespace(media={})]
    scored = without_silent_groups(prompts, [0, 0, 1, 1], torch.ones(4, 3).bool(), torch.ones(4).bool())
    assert scored.sum(1).tolist() == [1, 0, 0, 0]

"""The tests' engine: speaks as `echoink/rollout/vllm_worker.py` does, but decodes with transformers.

What it has of the model comes over the connection alone: the configuration's folder, weights by published names.
STAND_IN, in its environment, makes it fail: `dies` while it generates, `cannot` start, `lies` about probabilities and
layers, `shifts` positions, `blurs` features, `forgets` a layer, `ignores` an adapter in one, `drops` a buffer, `packs`
or `renames` what it holds, is `stale`: keeps the first weights and says that it took the later ones.
"""

import os
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from echoink.common.startup import imports

with imports():
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniThinkerForConditionalGeneration
    from trl.trainer.utils import add_fused_lm_head

    from echoink.models import loading
    from echoink.models.family import PromptInputs
    from echoink.models.logprobs import packed_logprobs
    from echoink.models.registry import family_of
    from echoink.models.shared_prefix import install
    from echoink.rollout import generate as rollout
    from echoink.rollout import weight_transfer
    from echoink.rollout.sampling import Sampling
    from echoink.rollout.vllm_engine import published_name

IN_TRANSFORMERS = (
    ("thinker.model.", "model.language_model."),
    ("thinker.lm_head.", "lm_head."),
    ("thinker.", "model."),
)


class StandIn:
    def __init__(self, connection=None):
        self.connection = connection

    def start(self, settings, temperature, sleeps, fields):
        if os.environ.get("STAND_IN") == "cannot":
            raise ValueError("no room for the weights")
        assert not sleeps
        config = Qwen2_5OmniConfig.from_pretrained(settings["model"])
        assert config.architectures == ["Qwen2_5OmniModel"]
        assert fields[0].startswith("vllm.") and fields[2] == (config.thinker_config.vision_config.spatial_merge_size,)
        dtype = getattr(torch, settings["dtype"])
        self.model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(config.thinker_config, dtype=dtype).eval()
        install(self.model)
        add_fused_lm_head(self.model, temperature=temperature)
        assert settings["async_scheduling"] is False, "on a CPU vLLM has none, so nothing else was tested"
        self.temperature, self.settings = temperature, settings
        if settings.get("enable_lora"):
            layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
            get_peft_model(self.model, loading.lora(settings["max_lora_rank"], 1, 0.0, layers))
        return "stand-in"

    def weights(self, path, whole):
        there = self._own_weights()
        found = dict(self._shared()) if path is None else load_file(path)
        if os.environ.get("STAND_IN") == "stale" and hasattr(self, "taken"):
            return self.taken | {"held": weight_transfer.digests(found.items())}
        if os.environ.get("STAND_IN") == "forgets":
            found = {name: value for name, value in found.items() if ".layers.1.self_attn." not in name}
        for name, value in found.items():
            theirs, ours = next(pair for pair in IN_TRANSFORMERS if name.startswith(pair[0]))
            there.pop(ours + name.removeprefix(theirs)).data.copy_(value)
        assert os.environ.get("STAND_IN") or not (whole and there), sorted(there)
        self.taken = {
            "count": len(found),
            "held": weight_transfer.digests(
                (published_name(family_of(self.model), name), weight) for name, weight in self._own_weights().items()
            ),
            "buffers": ["rotary"] if os.environ.get("STAND_IN") == "drops" else [],
        }
        if os.environ.get("STAND_IN") == "packs":
            self.taken["held"] = dict.fromkeys(self.taken["held"], -1)
        if os.environ.get("STAND_IN") == "renames":
            self.taken["held"] = {f"other.{part}": value for part, value in self.taken["held"].items()}
        return self.taken

    def _own_weights(self):
        own = ((name, weight) for name, weight in self.model.named_parameters() if ".lora_" not in name)
        return {name.replace(".base_layer.", "."): weight for name, weight in own}

    def adapter(self, path):
        found = load_file(f"{path}/adapter_model.safetensors")
        rank, held = LoraConfig.from_pretrained(path).r, {}
        for place, layer in self.model.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            name = published_name(family_of(self.model), place)
            layer.scaling["default"] = 1.0
            for kind in ("lora_A", "lora_B"):
                room = getattr(layer, kind)["default"].weight.data.zero_()
                given = found.pop(f"base_model.model.{name}.{kind}.weight", None)
                if given is not None and not (os.environ.get("STAND_IN") == "forgets" and ".layers.1." in name):
                    (room[:rank] if kind == "lora_A" else room[:, :rank]).copy_(given)
                held[f"{name}.{kind}"] = room.to(getattr(torch, self.settings["dtype"]))
        assert not found
        if os.environ.get("STAND_IN") == "ignores":
            held = {name: room for name, room in held.items() if ".layers.2." not in name}
        return {"count": len(held), "held": weight_transfer.digests(held.items()), "buffers": []}

    def _shared(self):
        while True:
            self.connection.send(("more", None))
            if not (handles := self.connection.recv()):
                return
            for name, values in handles:
                yield name, weight_transfer.of_handle(values)

    def given(self, prompt):
        from echoink.rollout import parity

        asked = self._prompt(prompt)
        with torch.no_grad():
            embedded = parity.embedded_prompt(self.model, asked).numpy()
        if os.environ.get("STAND_IN") == "blurs":
            sound = asked.input_ids == family_of(self.model).placeholders(self.model.config)["audio"]
            embedded[sound] *= 1.1
        return asked.position_ids.numpy() + (os.environ.get("STAND_IN") == "shifts"), embedded

    def residuals(self, prompt):
        from echoink.rollout import parity

        found = parity._residuals(self.model, self._prompt(prompt), bf16=False)
        if os.environ.get("STAND_IN") == "lies":
            found = [values if number < 2 else 2 * values for number, values in enumerate(found)]
        return [values.numpy() for values in found]

    def rest(self):
        pass

    def generate(self, prompts, sampling, rests=True):
        if os.environ.get("STAND_IN") == "dies":
            os._exit(9)
        asked = [self._prompt(prompt) for prompt in prompts]
        group, length = prompts[0]["n"], sampling["max_tokens"]
        assert len(prompts) * group <= self.settings["max_num_seqs"]
        noise = [np.random.default_rng(prompt["seed"]).random((group, length), dtype=np.float32) for prompt in prompts]
        ends = tuple(sampling["stop_token_ids"])
        wanted = Sampling(self.temperature, sampling["top_p"], sampling["top_k"], length, ends)
        temperatures = [self.temperature * sampling["temperature"]] * group
        rows = rollout.generate(
            self.model,
            asked,
            torch.from_numpy(np.stack(noise)),
            temperatures=temperatures,
            sampling=wanted,
        )
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)], scored[number, : len(row)] = torch.tensor(row), True
        prompt_index = [number for number in range(len(asked)) for _ in range(group)]
        with torch.no_grad():
            logps, _ = packed_logprobs(
                self.model, asked, None, prompt_index=prompt_index, completion_ids=ids, scored=scored
            )
        logps -= float(np.log(2)) if os.environ.get("STAND_IN") == "lies" else 0
        told = [logps[number, : len(row)].tolist() for number, row in enumerate(rows)]
        by_group = range(0, len(rows), group)
        return {
            "tokens": [rows[start : start + group] for start in by_group],
            "logps": [told[start : start + group] for start in by_group],
            "cached": 0,
        }

    def _prompt(self, prompt):
        media = {name: torch.from_numpy(value) for name, value in prompt.get("media", {}).items()}
        tokens = torch.from_numpy(prompt["tokens"])
        if "input_audio_features" in media:
            heard = media.pop("input_audio_features")
            assert heard.shape[1] == int(media.pop("audio_feature_lengths"))
            silence = media["feature_attention_mask"].shape[1] - heard.shape[1]
            media["input_features"] = torch.nn.functional.pad(heard, (0, silence))[None]
        for _, first, length, mask in prompt.get("places", ()):
            token = int(tokens[first])
            inside = tokens[first : first + length] == token
            assert inside.all() if mask is None else (torch.from_numpy(mask) == inside).all()
            assert int((tokens == token).sum()) == int(inside.sum())
        positions = prompt.get("positions")
        if positions is None:
            positions = np.tile(np.arange(len(tokens)), (3, 1))
        return PromptInputs(tokens, torch.from_numpy(positions), media)


def answer(engine, method, arguments):
    try:
        return "done", getattr(engine, method)(**arguments)
    except Exception:
        return "failed", traceback.format_exc()


class Near:
    """A connection to a stand-in in this process; what passes is pickled all the same."""

    def __init__(self):
        self._engine = StandIn()

    def send(self, asked):
        self._answer = pickle.dumps(answer(self._engine, *pickle.loads(pickle.dumps(asked))))

    def poll(self, seconds):
        return True

    def recv(self):
        return pickle.loads(self._answer)


def main():
    connection = Connection(int(sys.argv[1]))
    engine = StandIn(connection)
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        connection.send(answer(engine, method, arguments))


if __name__ == "__main__":
    main()

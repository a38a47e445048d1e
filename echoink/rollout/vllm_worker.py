"""Runs vLLM for `vllm_engine.Engine`: a script for a Python that has vLLM and need not have this package.

It takes requests over one connection, and answers each request with ("done", result) or ("failed", traceback):
start(settings, …), weights(path, whole), adapter(path), generate(prompts, sampling, rests), rest(), given(prompt),
residuals(prompt).
It ends when the connection does. While it takes weights without a file, it answers ("more", None) and gets the next of
them.

A prompt arrives complete: token ids, the processor's tensors, M-RoPE positions. vLLM's own processor is not used, nor
are its resizing, resampling and position arithmetic, which are those of another version of transformers.
"""

import ctypes
import importlib
import importlib.util
import signal
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import vllm
from safetensors import safe_open
from vllm import LLM, SamplingParams
from vllm.inputs.engine import mm_input, tokens_input
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
from vllm.sampling_params import RequestOutputKind


def _beside(name: str):
    """Import a module of this folder without the package around it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


weight_transfer = _beside("weight_transfer")


class Worker:
    """One engine and the methods that the trainer calls by name.

    All of these take and return plain values and numpy arrays, except for the handles of shared weights.

    Args:
        connection: the connection to the trainer.
    """

    def __init__(self, connection: Connection):
        self._connection = connection

    def start(self, settings: dict, temperature: float, sleeps: bool, fields: tuple[str, str, tuple]) -> str:
        """Build the engine around random weights.

        Args:
            settings: arguments of `vllm.LLM`.
            temperature: the sampling temperature. The model divides its logits by it, so that the log-probabilities
                are those of the distribution that is sampled from, before top-k and top-p.
            sleeps: whether to give the GPU's memory back between rollouts.
            fields: module, name and arguments of vLLM's function that says how media tensors are split into items.

        Returns:
            The version of vLLM.
        """
        self._llm = LLM(
            load_format="dummy",
            logprobs_mode="raw_logprobs",
            skip_mm_profiling=True,
            mm_processor_cache_gb=0,
            enable_sleep_mode=sleeps,
            **settings,
        )
        self._engine = self._llm.llm_engine
        self._sleeps = sleeps
        self._positions: dict[str, tuple[torch.Tensor, int]] = {}
        self._generated = 0
        self._adapter: LoRARequest | None = None
        self._adapters = 0
        self._llm.apply_model(lambda model: self._prepare(model, temperature))
        module, function, arguments = fields
        self._fields = getattr(importlib.import_module(module), function)(*arguments)
        self._buffers = self._llm.apply_model(self._seen)[0][1]
        self._sleep()
        return vllm.__version__

    def _prepare(self, model, temperature: float):
        logits = model.language_model.logits_processor
        getattr(logits, "base_layer", logits).scale = 1 / temperature  # wrapped if vLLM applies an adapter
        self._names = {_unwrapped(name) for name, _ in model.named_parameters()}
        load, compute, known = model.load_weights, model.get_mrope_input_positions, self._positions

        def load_and_count(weights):
            self._loaded = load(weights)
            return self._loaded

        def positions(input_tokens, mm_features):
            return known[mm_features[0].identifier] if mm_features else compute(input_tokens, mm_features)

        model.load_weights, model.get_mrope_input_positions = load_and_count, positions

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=2)  # drops weights as well as keys and values

    def weights(self, path: str | None, whole: bool) -> dict:
        """Load weights by their published names; an adapter from before no longer applies.

        Args:
            path: a safetensors file; None: the weights come over the connection, as handles to the trainer's memory.
            whole: whether every weight of the model must be among them.

        Returns:
            `count`: how many weights of the engine's model were written. `held`: digests of its parts.
            `buffers`: names of the buffers that have changed since the start.

        Raises:
            ValueError: weights are missing, or the prefix cache cannot be cleared.
        """
        if self._sleeps:
            self._llm.wake_up(tags=["weights"])
        given = self._shared() if path is None else self._filed(path)
        self._adapter = None  # vLLM forgets it with the old weights
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": given})
        if whole and (lacking := sorted(self._names - {_unwrapped(name) for name in self._loaded})):
            raise ValueError(f"{len(lacking)} weights did not arrive: {', '.join(lacking[:5])}")
        self._forget_prompts()
        if self._sleeps:
            self._llm.wake_up(tags=["kv_cache"])
        held, buffers = self._llm.apply_model(self._seen)[0]
        changed = [name for name, value in self._buffers.items() if buffers.get(name) != value]
        return {"count": len(self._loaded), "held": held, "buffers": changed}

    def adapter(self, path: str) -> dict:
        """Apply a LoRA adapter instead of the one before; the weights below it have been loaded.

        Args:
            path: a folder in PEFT's format.

        Returns:
            `count`, `held`, `buffers`: as `weights` does, of the adapter's matrices.
        """
        if self._adapter:
            self._engine.remove_lora(self._adapter.lora_int_id)
        # A new number and name each time: vLLM takes an adapter that it knows for unchanged.
        self._adapters += 1
        self._adapter = LoRARequest(f"adapter {self._adapters}", self._adapters, path)
        self._engine.add_lora(self._adapter)
        self._forget_prompts()
        held, count = self._llm.apply_model(self._seen_of_adapter)[0]
        return {"count": count, "held": held, "buffers": []}

    def _forget_prompts(self) -> None:
        if self._llm.reset_prefix_cache() is False:
            raise ValueError("keys and values of the old weights are still in use: the prefix cache was not cleared")

    @staticmethod
    def _seen(model) -> tuple[dict[str, int], dict[str, int]]:
        buffers = {name: weight_transfer.digests([(name, x)]) for name, x in model.named_buffers()}
        return weight_transfer.digests((_unwrapped(name), x) for name, x in model.named_parameters()), buffers

    @staticmethod
    def _seen_of_adapter(model) -> tuple[dict[str, int], int]:
        # What the kernels read. Where a matrix is smaller than the room for it, zeros follow, which add nothing.
        stacks = [
            (f"{name}.{kind}", stack)
            for name, module in model.named_modules()
            for kind in ("lora_A", "lora_B")
            for stack in getattr(module, f"{kind.lower()}_stacked", ())
        ]
        return weight_transfer.digests(stacks), len(stacks)

    @staticmethod
    def _filed(path: str) -> Iterator[tuple[str, torch.Tensor]]:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)

    def _shared(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trainer's weights, by their handles; the trainer keeps a chunk until it is asked for the next."""
        while True:
            self._connection.send(("more", None))
            if not (handles := self._connection.recv()):
                return
            for name, handle in handles:
                yield name, weight_transfer.of_handle(handle)

    def rest(self) -> None:
        """Sleep until the next weights arrive, if the engine sleeps between rollouts."""
        self._sleep()

    def generate(self, prompts: list[dict], sampling: dict, rests: bool = True) -> dict:
        """Generate n completions for each prompt.

        Args:
            prompts: each with `tokens` [P], `seed`, `n`, and if it has media, `media` (arrays by the names of vLLM's
                fields), `places` (modality, offset, length, mask or None) and `positions` [A, P].
            sampling: arguments of `SamplingParams` for all prompts.
            rests: whether to sleep afterwards.

        Returns:
            `tokens`, `logps`: n lists for each prompt; `cached`: prompt tokens from the prefix cache.
        """
        self._generated += 1
        self._positions.clear()
        for number, prompt in enumerate(prompts):
            params = SamplingParams(
                n=prompt["n"],
                seed=prompt["seed"],
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                **sampling,
            )
            asked = self._input(prompt, f"{self._generated}.{number}")
            self._engine.add_request(str(number), asked, params, lora_request=self._adapter)
        finished = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    finished[int(output.request_id.split("-")[0])] = output
        if rests:
            self._sleep()
        rows = [sorted(finished[number].outputs, key=lambda row: row.index) for number in range(len(prompts))]
        return {
            "tokens": [[list(row.token_ids) for row in group] for group in rows],
            "logps": [
                [[at[token].logprob for at, token in zip(row.logprobs, row.token_ids, strict=True)] for row in group]
                for group in rows
            ],
            "cached": sum(output.num_cached_tokens or 0 for output in finished.values()),
        }

    def given(self, prompt: dict) -> tuple[np.ndarray, np.ndarray]:
        """What the language model gets for a prompt: its positions [A, P], and its embedded tokens and media [P, D].

        Raises:
            ValueError: vLLM divided the prefill of the prompt.
        """
        found = []

        def keep(_module, _given, named) -> None:
            found.append((named["positions"].clone(), named["inputs_embeds"].clone()))

        self._llm.reset_prefix_cache()
        hook = self._llm.apply_model(lambda model: model.register_forward_pre_hook(_of_names(keep), with_kwargs=True))[
            0
        ]
        try:
            self.generate([prompt], {"max_tokens": 1, "temperature": 1.0}, rests=False)
        finally:
            hook.remove()
        length = len(prompt["tokens"])  # what follows is padding
        positions, embedded = found[0]
        if len(embedded) < length:
            raise ValueError(f"the prefill of {length} tokens was divided")
        return positions[:, :length].cpu().numpy(), embedded[:length].float().cpu().numpy()

    def residuals(self, prompt: dict) -> list[np.ndarray]:
        """The embedded prompt and the residual stream after each layer, each [P, D]. Needs an engine without graphs."""
        found = []

        def embedded(_module, _given, named) -> None:
            found.append(named["hidden_states"].clone())  # a copy: the layers' norms overwrite it

        def after(_module, _given, made) -> None:
            found.append(made[0] + made[1])  # what the layer adds, and the stream before it

        def watch(model) -> list:
            layers = model.language_model.model.layers
            before = layers[0].register_forward_pre_hook(_of_names(embedded), with_kwargs=True)
            return [before, *(layer.register_forward_hook(after) for layer in layers)]

        self._llm.reset_prefix_cache()
        hooks = self._llm.apply_model(watch)[0]
        try:
            self.generate([prompt], {"max_tokens": 1, "temperature": 1.0})
        finally:
            for hook in hooks:
                hook.remove()
        return [values[: len(prompt["tokens"])].float().cpu().numpy() for values in found]

    def _input(self, prompt: dict, name: str):
        tokens = [int(token) for token in prompt["tokens"]]
        if not prompt.get("media"):
            return tokens_input(tokens)
        media = {key: torch.from_numpy(value) for key, value in prompt["media"].items()}
        items = MultiModalKwargsItems.from_hf_inputs(media, self._fields(media))
        hashes, places = {}, {}
        for modality, offset, length, mask in prompt["places"]:
            hashes[modality] = [f"{name}.{modality}"]  # never reused: towers may learn
            embedded = None if mask is None else torch.from_numpy(mask)
            places[modality] = [PlaceholderRange(offset=offset, length=length, is_embed=embedded)]
        positions = torch.from_numpy(prompt["positions"])
        given = positions, int(positions.max()) + 1 - len(tokens)
        self._positions.update({keys[0]: given for keys in hashes.values()})
        return mm_input(tokens, items, hashes, places)


def _unwrapped(name: str) -> str:
    """A weight's name without the layer that vLLM puts around each linear layer where it applies an adapter."""
    return name.replace(".base_layer.", ".")


def _of_names(hook):
    """A hook that gets all arguments of a layer by name: positions, hidden states, residual."""
    names = ("positions", "hidden_states", "residual")  # a layer's in order; a whole model gets all of its by name
    return lambda module, given, named: hook(module, given, {**dict(zip(names, given, strict=False)), **named})


def main() -> None:
    """Answer requests over the connection until it ends."""
    if sys.platform == "linux":  # one that hangs does not see that the connection is closed
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    connection = Connection(int(sys.argv[1]))
    worker = Worker(connection)
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = ("done", getattr(worker, method)(**arguments))
        except Exception:
            answer = ("failed", traceback.format_exc())
        connection.send(answer)


if __name__ == "__main__":
    main()

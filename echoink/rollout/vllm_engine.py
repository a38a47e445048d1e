"""Rollouts by vLLM, in a process and a Python of its own (`generation=vllm`).

Engine and trainer seldom want the same versions of torch and transformers. So the engine is another interpreter
(`generation.vllm.python`) that runs `vllm_worker.py`, one beside each process of the run, on its GPU. It gets the
trainer's own inputs: the prompt's tokens, its media as the trainer's processor made them, its positions. Before each
generation it gets the weights that learn, an adapter merged in.

Shapes: B prompts, G completions per prompt, P prompt tokens, C completion tokens.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from echoink.common import console
from echoink.common.errors import UserError
from echoink.models.families import family_of
from echoink.models.family import Family, PromptInputs
from echoink.planning import memory
from echoink.rollout import vllm_environment, weight_transfer
from echoink.rollout.sampling import Sampling

WORKER = Path(__file__).parent / "vllm_worker.py"
MEMORY = Path("/dev/shm")
"""Where weights pass from trainer to engine without a GPU, if there is room: a container's may have 64 MB."""
CHUNK = 2**30
"""Bytes of weights, in the engine's type, that are sent at a time; the weight that passes this ends the chunk."""
MORE = object()
"""The engine's answer where it wants more weights."""
_BLOCK = 32
"""Tokens per block of vLLM's cache on a CPU; a prompt's tokens after its last whole block are computed again for each
completion."""


@dataclass(frozen=True)
class EngineSetup:
    """What an engine is started for."""

    python: str | None
    """The interpreter that has vLLM; None: this one."""
    sampling: Sampling
    """How a token is chosen, and which ends a completion."""
    rows: int
    """Completions that are decoded together."""
    longest: int
    """P of the longest prompt."""
    bf16: bool
    """Weights and arithmetic in bfloat16, else float32."""
    device: torch.device
    """The GPU of this process; any other is the CPU."""
    sleeps: bool
    """Give the GPU's memory back between rollouts."""
    prefix_cache: bool = True
    """Compute a prompt once for its group."""
    eager: bool = False
    """Without CUDA graphs, so that one can look into the layers."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def shares_memory(self) -> bool:
        """Whether the engine can read this process's weights where they lie."""
        return self.gpu is not None

    @property
    def gpu(self) -> torch.device | None:
        """Where it computes; None for the CPU."""
        return self.device if self.device.type == "cuda" else None


@dataclass(frozen=True)
class Pushed:
    """What came of a sync."""

    written: int
    """Weights of the engine."""
    parts: int
    """Parts of layers that were sent."""
    compared: int
    """How many of these could be compared bit for bit. The engine packs the others: on a CPU linear layers."""


class Engine:
    """vLLM with the architecture of a model.

    Args:
        model: only its configuration is used.
        processor: the model's; vLLM wants to find its files.
        setup: what it is started for.
        log: file for what vLLM says.
        weights: file by which weights are passed; the processes of one machine share it.
        writes: whether this process writes it for all of its machine.
        each: does a piece of work in every process of the run, and waits for all.

    Raises:
        UserError: there is no vLLM, or it does not start.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        setup: EngineSetup,
        log: Path,
        weights: Path,
        writes: bool = True,
        each: Callable[[Callable[[], None]], None] = lambda work: work(),
    ):
        self._log, self._weights, self._writes, self._each = log, weights, writes, each
        self.dtype, self._gpu, sampling = setup.dtype, setup.gpu, setup.sampling
        self._family = family = family_of(model)
        self._tokens = family.placeholders(model.config)
        self._sampling = {
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(sampling.end_ids),
            # A sampled placeholder would stand for a picture or a sound that is not there.
            "logit_bias": dict.fromkeys(self._tokens.values(), -100.0),
        }
        self._sleeps = setup.sleeps and self._gpu is not None
        self._shares = setup.shares_memory
        self._has_weights = False
        if writes:
            weights.unlink(missing_ok=True)  # of a killed run, on another machine than the first process's
        self._folder = Path(tempfile.mkdtemp(prefix="echoink-engine-"))
        started = time.perf_counter()
        self._said = log.stat().st_size if log.is_file() else 0  # by engines of an earlier process of the run
        try:
            processor.save_pretrained(self._folder)
            family.vllm_config(model.config).save_pretrained(self._folder)
            self._process, self._connection = _start(setup.python or sys.executable, self._gpu, log)
            fields = (*family.VLLM_FIELDS, family.vllm_field_arguments(model.config))
            settings = self._settings(model, setup)
            self.version = self._ask(
                "start", settings=settings, temperature=sampling.temperature, sleeps=self._sleeps, fields=fields
            )
        except BaseException:
            self.close()
            raise
        self.seconds = time.perf_counter() - started

    def _settings(self, model: PreTrainedModel, setup: EngineSetup) -> dict[str, Any]:
        """vLLM's own."""
        length = setup.longest + setup.sampling.max_new_tokens
        return {
            "model": str(self._folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": length,
            "max_num_seqs": setup.rows,
            # On a CPU vLLM cannot divide the prefill of a prompt whose sampling has a seed.
            "max_num_batched_tokens": max(4096, setup.rows, setup.longest if self._gpu else setup.rows * setup.longest),
            "kv_cache_memory_bytes": cache_bytes(model, setup.rows, length, self.dtype),
            "gpu_memory_utilization": 0.01,  # the bytes above are meant; this is only compared with what is free
            "limit_mm_per_prompt": dict.fromkeys(self._tokens, 1),
            "enable_prefix_caching": setup.prefix_cache,
            "enforce_eager": setup.eager or not self._gpu,
            **({} if self._gpu else {"block_size": _BLOCK}),
        }

    def push(self, model: torch.nn.Module) -> Pushed:
        """Give the engine the model's weights; after the first time only those that learn.

        On a GPU they stay there: the engine copies them out of this process's memory. Else one process of each machine
        writes a file for all.

        Args:
            model: the policy with all its weights in this process, perhaps with an adapter's in its layers.

        Raises:
            UserError: the engine then holds other weights than it was sent.
        """
        everything = self._sleeps or not self._has_weights
        device = next(model.parameters()).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            found: list[Pushed] = []
            if self._shares:
                self._each(lambda: found.append(self._push_shared(model, everything)))
            else:
                self._push_file(model, everything, found)
        self._has_weights = True
        return found[0]

    def _push_shared(self, model: torch.nn.Module, everything: bool) -> Pushed:
        """Send handles to weights in this process's memory, in chunks; the engine asks for each next one."""
        self._make_room()
        # Always a copy: memory that is handed out again and again piles up a context of CUDA's for each time.
        made = ((name, weight.to(self.dtype, copy=True)) for name, weight in published(model, everything))
        weights = ((name, weight.contiguous()) for name, weight in made)
        sent: dict[str, int] = {}
        self._send(("weights", {"path": None, "whole": everything}))
        while (answer := self._receive("weights")) is MORE:
            chunk = dict(_chunk(weights))  # lives until the engine has read it
            for part, value in weight_transfer.digests(chunk.items()).items():
                sent[part] = (sent.get(part, 0) + value) % 2**64
            self._send([(name, weight_transfer.handle(weight)) for name, weight in chunk.items()])
        return self._checked(sent, answer)

    def _push_file(self, model: torch.nn.Module, everything: bool, found: list[Pushed]) -> None:
        """One file for all processes of a machine, which its first one writes."""

        def write() -> None:
            if self._writes:
                named = ((name, weight.to("cpu", self.dtype)) for name, weight in published(model, everything))
                kept = {name: weight.contiguous() for name, weight in named}
                note = {"digests": json.dumps(weight_transfer.digests(kept.items()))}
                save_file(kept, self._weights, metadata=note)

        def read() -> None:
            with safe_open(self._weights, "pt") as file:
                sent = json.loads(file.metadata()["digests"])
            found.append(self._checked(sent, self._ask("weights", path=str(self._weights), whole=everything)))

        self._each(write)
        self._each(read)
        self._weights.unlink(missing_ok=True)  # it may be gigabytes of memory

    def _checked(self, sent: dict[str, int], answer: dict[str, Any]) -> Pushed:
        """What the engine made of the weights.

        Raises:
            UserError: it holds others.
        """
        if wrong := weight_transfer.differing(sent, answer["held"]):
            raise UserError(
                f"after a sync the engine holds other weights than it was sent in {len(wrong)} of {len(sent)} parts: "
                f"{', '.join(wrong[:3])}",
                f"this version of vLLM ({self.version}) does not take them as the tested ones do; {self._log}",
            )
        if answer["buffers"]:
            raise UserError(
                f"a sync has changed {len(answer['buffers'])} buffers of the engine: "
                f"{', '.join(answer['buffers'][:3])}",
                "generation.vllm.sleep=false keeps them where they are",
            )
        if sent.keys().isdisjoint(answer["held"]):
            raise UserError(
                f"nothing of what the engine was sent can be found in it: {len(sent)} parts of layers",
                f"this version of vLLM ({self.version}) names its weights otherwise than the tested ones",
            )
        seen = sum(answer["held"].get(part, -1) >= 0 for part in sent)
        if not self._has_weights:
            console.say("engine", f"weights are compared bit for bit in {seen} of {len(sent)} parts of layers")
        return Pushed(answer["count"], len(sent), seen)

    def generate(
        self,
        prompts: Sequence[PromptInputs],
        seeds: Sequence[int],
        group: int,
        greedy: bool = False,
        rests: bool = True,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """G completions for each of B prompts.

        Args:
            prompts: B prompts.
            seeds: of their sampling, one each.
            group: G.
            greedy: take the likeliest token each time; then G is 1.
            rests: give the GPU's memory back afterwards, where the engine sleeps: the next call wants a `push` before.

        Returns:
            B·G lists of tokens, an end token last where there is one, and the log-probability of each under the
            distribution at the sampling temperature, before top-k and top-p.
        """
        asked = [
            {"tokens": prompt.input_ids.numpy(), "seed": seed, "n": group, **self._media(prompt)}
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        self._make_room()
        sampling = self._sampling | {"temperature": 0.0 if greedy else 1.0}  # the logits are divided already
        answer = self._ask("generate", prompts=asked, sampling=sampling, rests=rests)
        self.cached = answer["cached"]
        return [row for rows in answer["tokens"] for row in rows], [row for rows in answer["logps"] for row in rows]

    def rest(self) -> None:
        """Give the GPU's memory back, where the engine sleeps."""
        self._ask("rest")

    def given(self, prompt: PromptInputs) -> tuple[Tensor, Tensor]:
        """What its language model gets for a prompt: positions [A, P] and the embedded prompt [P, D]; see `parity`."""
        self._make_room()
        positions, embedded = self._ask("given", prompt=self._alone(prompt))
        return torch.from_numpy(positions), torch.from_numpy(embedded)

    def residuals(self, prompt: PromptInputs) -> list[Tensor]:
        """The embedded prompt and the residual stream after each layer, each [P, D]; see `parity`."""
        return [torch.from_numpy(found) for found in self._ask("residuals", prompt=self._alone(prompt))]

    def _alone(self, prompt: PromptInputs) -> dict[str, Any]:
        return {"tokens": prompt.input_ids.numpy(), "seed": 0, "n": 1, **self._media(prompt)}

    def close(self) -> None:
        """End the engine's process and remove what was written for it."""
        if process := getattr(self, "_process", None):
            self._connection.close()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._weights.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Give the GPU what PyTorch keeps for later: the engine is another process and cannot use it."""
        if self._gpu is not None:
            torch.cuda.ipc_collect()  # weights that the engine has read by now
            torch.cuda.empty_cache()

    def _media(self, prompt: PromptInputs) -> dict[str, Any]:
        """A prompt's media by the names of vLLM's fields, their places among its tokens, and its positions."""
        if not prompt.media:
            return {}
        places = []
        for name, token in self._tokens.items():
            at = (prompt.input_ids == token).nonzero().squeeze(1)
            if len(at):
                first, length = int(at[0]), int(at[-1] - at[0]) + 1
                woven = len(at) < length  # into the tokens of another medium
                mask = (prompt.input_ids[first : first + length] == token).numpy() if woven else None
                places.append((name, first, length, mask))
        return {
            "media": self._family.vllm_media(prompt.media),
            "places": places,
            "positions": prompt.position_ids.numpy(),
        }

    def _ask(self, method: str, **arguments: Any) -> Any:
        self._send((method, arguments))
        return self._receive(method)

    def _send(self, what: Any) -> None:
        with suppress(OSError):  # of an engine that has ended: `_receive` says so
            self._connection.send(what)

    def _receive(self, method: str) -> Any:
        try:
            while not self._connection.poll(1):
                if self._process.poll() is not None:
                    raise EOFError
            outcome, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            status = self._process.wait()
            output = self._log.read_bytes()[self._said :].decode(errors="replace").strip()
            hint = vllm_environment.INSTALL if "No module named 'vllm'" in output else f"{self._log} has all it said"
            last = output.splitlines()[-1][:300] if output else "it said nothing"
            raise UserError(f"the engine has ended (status {status}): {last}", hint) from error
        if outcome == "failed":
            with self._log.open("a") as log:
                log.write(answer)
            reason = answer.strip().splitlines()[-1][:300]
            raise UserError(f"the engine could not {method}: {reason}", f"{self._log} has all it said")
        return MORE if outcome == "more" else answer


def published(model: torch.nn.Module, everything: bool) -> Iterator[tuple[str, Tensor]]:
    """Published names and weights of a model, with an adapter merged in and 4-bit weights dequantized.

    Args:
        model: the policy, not wrapped.
        everything: if False, only modules in which something learns, each as a whole: vLLM fuses the projections of an
            attention, and those of a feed-forward layer, into one weight.
    """
    family, parts = family_of(model), {}
    learning = set()
    for name, weight in model.named_parameters():
        part = name.split(".lora_")[0].removesuffix(".weight").removesuffix(".bias").removesuffix(".base_layer")
        parts.setdefault(part.rpartition(".")[0], {})[name] = weight
        if weight.requires_grad:
            learning.add(part.rpartition(".")[0])
    for part in parts if everything else learning:
        for name, weight in parts[part].items():
            if ".lora_" in name:
                continue
            place, kind = name.replace(".base_layer.", ".").rsplit(".", 1)
            if kind == "weight":
                layer = model.get_submodule(place)
                weight = dequantize_module_weight(model.get_submodule(name.rpartition(".")[0]))
                if isinstance(layer, LoraLayer):
                    weight = weight + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
            yield published_name(family, f"{place}.{kind}"), weight.detach()


def _chunk(weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The next weights, about `CHUNK` bytes, which are held twice at once; nothing at the end."""
    size = 0
    for name, weight in weights:
        yield name, weight
        size += weight.nbytes
        if size >= CHUNK:
            return


def cache_bytes(model: PreTrainedModel, rows: int, length: int, dtype: torch.dtype) -> int:
    """Keys and values of `rows` completions with their prompts, `length` tokens each: nobody waits for room."""
    blocks = memory.PackedRow(rows, 1, 0, (length // _BLOCK + 2) * _BLOCK)
    return memory.cache(memory.model_of(model), blocks, dtype is torch.bfloat16)


def published_name(family: Family, name: str) -> str:
    """The name that a weight has in a published checkpoint, from the name that it has in transformers."""
    for pattern, published_as in family.PUBLISHED_NAMES:
        name, found = pattern.subn(published_as, name)
        if found:
            return name
    raise ValueError(f"{name} is no weight of {family.NAME}")


def passage(run: Path, needed: int) -> Path:
    """The file by which a run passes so many bytes of weights: in memory where there is room.

    Its name is the run folder's, so that a run which is taken up on the same machine removes what it left there when it
    was killed.
    """
    known, disk = run.stat(), Path(tempfile.gettempdir())
    name = f"echoink-{known.st_dev:x}-{known.st_ino:x}.safetensors"
    for folder in (MEMORY, disk):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        if shutil.disk_usage(MEMORY).free > 1.1 * needed:
            return MEMORY / name
    return disk / name


def _start(python: str, gpu: torch.device | None, log: Path) -> tuple[subprocess.Popen, Connection]:
    environment = vllm_environment.variables(python)
    if gpu is not None:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        index = gpu.index or 0
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)
    ours, theirs = socket.socketpair()
    with ours, theirs, log.open("ab") as file:
        process = subprocess.Popen(
            [python, "-P", str(WORKER), str(theirs.fileno())],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        return process, Connection(ours.detach())

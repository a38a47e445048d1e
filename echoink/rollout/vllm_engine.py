"""Rollouts by vLLM, in its own process and its own Python (`generation=vllm`).

Engine and trainer seldom need the same versions of torch and transformers. So the engine is another interpreter
(`generation.vllm.python`) that runs `vllm_worker.py`, one beside each process of the run, on its GPU. It gets the
trainer's own inputs: the prompt's tokens, its media as the trainer's processor made them, and its positions. Before
each rollout or evaluation it gets the weights that learn.

An adapter is merged into the weights if they are in float32. In bfloat16 a sum loses an update that is small beside the
weight (of LoRA's first steps almost all), so there vLLM gets the adapter's matrices alone and applies them itself.

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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from echoink.common import console
from echoink.common.errors import UserError
from echoink.distributed import collectives
from echoink.models.family import Family, PromptInputs
from echoink.models.registry import family_of
from echoink.planning import memory
from echoink.rollout import vllm_environment, weight_transfer
from echoink.rollout.sampling import Sampling

WORKER = Path(__file__).parent / "vllm_worker.py"
MEMORY = Path("/dev/shm")
"""The folder through which weights are passed without a GPU, if it has room: in a container it may have only 64 MB."""
CHUNK = 2**30
"""Bytes of weights, in the engine's type, that are sent at a time; the weight that reaches this ends the chunk."""
MORE = object()
"""The engine's answer if it asks for more weights."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks for which vLLM makes room."""
_BLOCK = 32
"""Tokens per block of vLLM's cache on a CPU. The tokens of a prompt after its last whole block are computed again for
each completion."""


@dataclass(frozen=True)
class EngineSetup:
    """What an engine is started for."""

    python: str | None
    """The interpreter that has vLLM; None: the current one."""
    sampling: Sampling
    """How a token is chosen, and which tokens end a completion."""
    rows: int
    """Completions that are decoded together."""
    longest: int
    """Tokens of the longest prompt."""
    bf16: bool
    """Whether weights and arithmetic are in bfloat16; else they are in float32."""
    device: torch.device
    """The GPU of this process; any other device means the CPU."""
    sleeps: bool
    """Whether the engine gives the GPU's memory back between rollouts."""
    prefix_cache: bool = True
    """Whether a prompt is computed once for its group."""
    adapter_rank: int = 0
    """The rank of the policy's adapter; 0 if it has none."""
    eager: bool = False
    """Whether to do without CUDA graphs, so that hooks can read the layers; on a CPU there never are any."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the engine's weights."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def shares_memory(self) -> bool:
        """Whether the engine can read the weights in this process's memory."""
        return self.gpu is not None

    @property
    def rank_apart(self) -> int:
        """The rank, one of `RANKS`, for an adapter that the engine applies itself; 0: it gets none, or a merged one."""
        fitting = [rank for rank in RANKS if rank >= self.adapter_rank]
        return min(fitting, default=0) if self.bf16 and self.adapter_rank else 0

    @property
    def gpu(self) -> torch.device | None:
        """The GPU that it computes on; None for the CPU."""
        return self.device if self.device.type == "cuda" else None


@dataclass(frozen=True)
class Pushed:
    """The result of a push of weights."""

    written: int
    """How many weights of the engine's model were written."""
    parts: int
    """How many parts of layers were sent."""
    compared: int
    """How many of these could be compared bit for bit. The engine repacks the others: on a CPU, linear layers."""


class Engine:
    """vLLM with the architecture of a model.

    Args:
        model: the model; only its configuration is used.
        processor: the model's processor; vLLM requires its files.
        setup: what the engine is started for.
        log: the file for vLLM's output.
        weights: the file through which weights are passed without a GPU; the processes of a machine share it.
        writes: whether this process writes this file for all processes of its machine.

    Raises:
        UserError: there is no vLLM, or it does not start. Every request raises it if the engine has ended or fails.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        setup: EngineSetup,
        log: Path,
        weights: Path,
        writes: bool = True,
    ):
        self._log, self._weights, self._writes = log, weights, writes
        self.dtype, self._gpu, sampling = setup.dtype, setup.gpu, setup.sampling
        self._family = family = family_of(model)
        self._tokens = family.placeholders(model.config)
        self._sampling = {
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(sampling.end_ids),
            # Placeholders are not sampled: they would stand for a medium that is not there.
            "logit_bias": dict.fromkeys(self._tokens.values(), -100.0),
        }
        self._sleeps = setup.sleeps and self._gpu is not None
        self._shares, self._merges = setup.shares_memory, not setup.rank_apart
        self.forget()
        if writes:
            weights.unlink(missing_ok=True)  # left by a killed run; `passage` removes it only on the first machine
        self._folder = Path(tempfile.mkdtemp(prefix="echoink-engine-"))
        started = time.perf_counter()
        self._said = log.stat().st_size if log.is_file() else 0  # bytes that engines of an earlier process have written
        try:
            processor.save_pretrained(self._folder)
            family.vllm_config(model.config).save_pretrained(self._folder)
            self._process, self._connection = _start(setup.python or sys.executable, self._gpu, log)
            self.version = self._ask(
                "start",
                settings=self._settings(model, setup),
                temperature=sampling.temperature,
                sleeps=self._sleeps,
                fields=family.vllm_fields(model.config),
            )
        except BaseException:
            self.close()
            raise
        self.seconds = time.perf_counter() - started

    def _settings(self, model: PreTrainedModel, setup: EngineSetup) -> dict[str, Any]:
        """Settings of `vllm.LLM`."""
        length = setup.longest + setup.sampling.max_new_tokens
        return {
            "model": str(self._folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": length,
            "max_num_seqs": setup.rows,
            # On a CPU vLLM cannot divide the prefill of a prompt whose sampling has a seed.
            "max_num_batched_tokens": max(4096, setup.rows, setup.longest if self._gpu else setup.rows * setup.longest),
            "kv_cache_memory_bytes": cache_bytes(model, setup.rows, length, self.dtype),
            "gpu_memory_utilization": 0.01,  # the bytes above count; vLLM only compares this with what is free
            "limit_mm_per_prompt": dict.fromkeys(self._tokens, 1),
            "enable_prefix_caching": setup.prefix_cache,
            "enforce_eager": setup.eager or not self._gpu,
            "async_scheduling": False,  # as on a CPU, where it was tested
            **({} if self._gpu else {"block_size": _BLOCK}),
            **({"enable_lora": True, "max_loras": 1, "max_lora_rank": setup.rank_apart} if setup.rank_apart else {}),
        }

    def push(self, model: torch.nn.Module) -> Pushed:
        """Give the engine the model's weights; after the first time only those that learn, if it never sleeps.

        On a GPU they stay there: the engine copies them from this process's memory. Otherwise one process of each
        machine writes a file for all. An adapter that the engine applies itself is a small file of each process.

        Args:
            model: the policy with all its weights in this process, perhaps with an adapter in its layers.

        Returns:
            How many weights were written, and how many parts were sent and compared.

        Raises:
            UserError: afterwards the engine holds other weights than it was sent, see `_checked`.
        """
        everything = self._sleeps or not self._has_weights
        device = next(model.parameters()).device.type
        apart = not self._merges and adapter_rank(model) > 0
        with torch.no_grad(), torch.autocast(device, enabled=False):
            found: list[Pushed] = []
            if everything or not apart:  # beside an adapter nothing learns
                if self._shares:
                    collectives.each(lambda: found.append(self._push_shared(model, everything)))
                else:
                    self._push_file(model, everything, found)
            if apart:
                collectives.each(lambda: found.append(self._push_adapter(model)))
        self._has_weights = True
        return Pushed(*(sum(column) for column in zip(*map(astuple, found), strict=True)))

    def forget(self) -> None:
        """Send all weights with the next push: it will be of another model."""
        self._has_weights = False

    def _push_shared(self, model: torch.nn.Module, everything: bool) -> Pushed:
        """Send handles to weights in this process's memory, in chunks; the engine asks for each chunk."""
        self._make_room()
        # Always copy: each time the same memory is shared again, one more CUDA context piles up.
        named = published(model, everything, self._merges)
        made = ((name, weight.to(self.dtype, copy=True)) for name, weight in named)
        weights = ((name, weight.contiguous()) for name, weight in made)
        sent: dict[str, int] = {}
        self._send(("weights", {"path": None, "whole": everything}))
        while (answer := self._receive("weights")) is MORE:
            with weight_transfer.shareable():
                chunk = dict(_chunk(weights))  # lives until the engine has read it
            for part, value in weight_transfer.digests(chunk.items()).items():
                sent[part] = (sent.get(part, 0) + value) % 2**64
            self._send([(name, weight_transfer.handle(weight)) for name, weight in chunk.items()])
        return self._checked(sent, answer)

    def _push_file(self, model: torch.nn.Module, everything: bool, found: list[Pushed]) -> None:
        """Pass weights in one file for all processes of a machine, written by the first of them."""

        def write() -> None:
            if self._writes:
                named = published(model, everything, self._merges)
                named = ((name, weight.to("cpu", self.dtype)) for name, weight in named)
                kept = {name: weight.contiguous() for name, weight in named}
                note = {"digests": json.dumps(weight_transfer.digests(kept.items()))}
                save_file(kept, self._weights, metadata=note)

        def read() -> None:
            with safe_open(self._weights, "pt") as file:
                sent = json.loads(file.metadata()["digests"])
            found.append(self._checked(sent, self._ask("weights", path=str(self._weights), whole=everything)))

        collectives.each(write)
        collectives.each(read)
        self._weights.unlink(missing_ok=True)  # in `MEMORY` it may take gigabytes

    def _push_adapter(self, model: torch.nn.Module) -> Pushed:
        """Send the matrices of an adapter.

        Raises:
            UserError: vLLM leaves layers of it out, or see `_checked`.
        """
        sent = write_adapter(model, self._folder, self.dtype)
        answer = self._ask("adapter", path=str(self._folder))
        if ignored := sorted(sent.keys() - answer["held"].keys()):
            raise UserError(
                f"vLLM {self.version} applies no adapter in {len(ignored)} of {len(sent)} parts: "
                f"{', '.join(ignored[:3])}",
                "merge the adapter into its base first: python -m echoink.export",
            )
        return self._checked(sent, answer, "the adapter is sent alone, its matrices")

    def _checked(self, sent: dict[str, int], answer: dict[str, Any], what: str = "weights") -> Pushed:
        """Compare what the engine holds after a push with what it was sent.

        Raises:
            UserError: it holds other weights, a buffer has changed, or no part can be found in it.
        """
        if wrong := weight_transfer.differing(sent, answer["held"]):
            raise UserError(
                f"after a sync the engine holds other weights than it was sent in {len(wrong)} of {len(sent)} parts: "
                f"{', '.join(wrong[:3])}",
                f"vLLM {self.version} does not load them as the tested versions do; its output is in {self._log}",
            )
        if answer["buffers"]:
            raise UserError(
                f"a sync has changed {len(answer['buffers'])} buffers of the engine: "
                f"{', '.join(answer['buffers'][:3])}",
                "generation.vllm.sleep=false keeps them in memory",
            )
        if sent.keys().isdisjoint(answer["held"]):
            raise UserError(
                f"nothing of what the engine was sent can be found in it: {len(sent)} parts of layers",
                f"vLLM {self.version} names its weights differently from the tested versions",
            )
        seen = sum(answer["held"].get(part, -1) >= 0 for part in sent)
        if not self._has_weights:
            console.say("engine", f"{what} are compared bit for bit in {seen} of {len(sent)} parts of layers")
        return Pushed(answer["count"], len(sent), seen)

    def generate(
        self,
        prompts: Sequence[PromptInputs],
        seeds: Sequence[int],
        group: int,
        greedy: bool = False,
        rests: bool = True,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Generate G completions for each of B prompts.

        Args:
            prompts: B prompts.
            seeds: one sampling seed for each prompt.
            group: G.
            greedy: take the likeliest token each time; then G is 1.
            rests: if the engine sleeps, give the GPU's memory back afterwards; the next call then needs a `push` first.

        Returns:
            B·G lists of token ids, with the end token last where a completion ended, and as many lists of the tokens'
            log-probabilities under the distribution at the sampling temperature, before top-k and top-p.
        """
        asked = [self._request(prompt, seed, group) for prompt, seed in zip(prompts, seeds, strict=True)]
        self._make_room()
        sampling = self._sampling | {"temperature": 0.0 if greedy else 1.0}  # the worker has divided the logits
        answer = self._ask("generate", prompts=asked, sampling=sampling, rests=rests)
        self.cached = answer["cached"]
        return [row for rows in answer["tokens"] for row in rows], [row for rows in answer["logps"] for row in rows]

    def rest(self) -> None:
        """Give the GPU's memory back, if the engine sleeps between rollouts."""
        self._ask("rest")

    def given(self, prompt: PromptInputs) -> tuple[Tensor, Tensor]:
        """What its language model gets for a prompt: positions [A, P] and the embedded prompt [P, D]; see `parity`."""
        self._make_room()
        positions, embedded = self._ask("given", prompt=self._request(prompt))
        return torch.from_numpy(positions), torch.from_numpy(embedded)

    def residuals(self, prompt: PromptInputs) -> list[Tensor]:
        """The embedded prompt and the residual stream after each layer, each [P, D]; see `parity`."""
        return [torch.from_numpy(found) for found in self._ask("residuals", prompt=self._request(prompt))]

    def _request(self, prompt: PromptInputs, seed: int = 0, n: int = 1) -> dict[str, Any]:
        return {"tokens": prompt.input_ids.numpy(), "seed": seed, "n": n, **self._media(prompt)}

    def close(self) -> None:
        """End the engine's process and remove the files written for it."""
        if process := getattr(self, "_process", None):
            self._connection.close()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._weights.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Free the GPU memory that PyTorch caches: the engine is another process and cannot use it."""
        if self._gpu is not None:
            torch.cuda.ipc_collect()  # frees weights that the engine has read
            torch.cuda.empty_cache()

    def _media(self, prompt: PromptInputs) -> dict[str, Any]:
        """Media by the names of vLLM's fields, their places among the tokens, and positions; nothing without media."""
        if not prompt.media:
            return {}
        places = []
        for name, token in self._tokens.items():
            at = (prompt.input_ids == token).nonzero().squeeze(1)
            if len(at):
                first, length = int(at[0]), int(at[-1] - at[0]) + 1
                woven = len(at) < length  # interleaved with the tokens of another medium
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
        with suppress(OSError):  # the engine has ended: `_receive` reports it
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
            hint = vllm_environment.INSTALL if "No module named 'vllm'" in output else f"its output is in {self._log}"
            last = output.splitlines()[-1][:300] if output else "it said nothing"
            raise UserError(f"the engine has ended (status {status}): {last}", hint) from error
        if outcome == "failed":
            with self._log.open("a", encoding="utf-8") as log:
                log.write(answer)
            reason = answer.strip().splitlines()[-1][:300]
            raise UserError(f"the engine failed ({method}): {reason}", f"its output is in {self._log}")
        return MORE if outcome == "more" else answer


def published(model: torch.nn.Module, everything: bool, merges: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Published names and weights of a model, with 4-bit weights dequantized.

    Args:
        model: the policy, not wrapped.
        everything: if False, only the weights of modules in which something learns, all of them for each such module:
            vLLM fuses projections of an attention layer, and of a feed-forward layer, into one weight.
        merges: merge an adapter into them; if False, they are those of its base.
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
                if merges and isinstance(layer, LoraLayer):
                    weight = weight + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
            yield published_name(family, f"{place}.{kind}"), weight.detach()


def adapter_matrices(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Published names and matrices of a LoRA adapter: A [r, in] and B [out, r] of each layer, B times the scaling."""
    family = family_of(model)
    for place, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.active_adapters
            name = published_name(family, place)
            yield f"{name}.lora_A", layer.lora_A[adapter].weight.detach()
            yield f"{name}.lora_B", layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]


def write_adapter(model: torch.nn.Module, folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Write a model's LoRA adapter in PEFT's format; returns the digests of its matrices."""
    named = {name: weight.to("cpu", dtype).contiguous() for name, weight in adapter_matrices(model)}
    layers = sorted({name.split(".")[-2] for name in named})
    # The matrices have the scaling already: α / r = 1.
    rank = adapter_rank(model)
    LoraConfig(r=rank, lora_alpha=rank, target_modules=layers).save_pretrained(folder)
    kept = {f"base_model.model.{name}.weight": weight for name, weight in named.items()}
    save_file(kept, folder / "adapter_model.safetensors")
    return weight_transfer.digests(named.items())


def adapter_rank(model: torch.nn.Module) -> int:
    """The rank of a model's LoRA adapter; 0 if it has none."""
    layers = (layer for layer in model.modules() if isinstance(layer, LoraLayer))
    return max((layer.r[adapter] for layer in layers for adapter in layer.active_adapters), default=0)


def _chunk(weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The next weights, about `CHUNK` bytes; two such chunks may be in memory at once. Empty at the end."""
    size = 0
    for name, weight in weights:
        yield name, weight
        size += weight.nbytes
        if size >= CHUNK:
            return


def cache_bytes(model: PreTrainedModel, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of `rows` completions, `length` tokens each with the prompt: none has to wait."""
    blocks = memory.PackedRow(rows, 1, 0, (length // _BLOCK + 2) * _BLOCK)
    return memory.cache(memory.model_of(model), blocks, dtype is torch.bfloat16)


def published_name(family: Family, name: str) -> str:
    """The name of a weight in a published checkpoint, from its name in transformers.

    Raises:
        ValueError: the family has no such weight.
    """
    for pattern, published_as in family.PUBLISHED_NAMES:
        name, found = pattern.subn(published_as, name)
        if found:
            return name
    raise ValueError(f"{name} is not a weight of {family.NAME}")


def passage(run: Path, needed: int) -> Path:
    """The file through which a run passes `needed` bytes of weights: in memory if there is room, else on disk.

    Its name is made from the run folder's device and inode. So a run that was killed and is resumed on the same machine
    removes the file that it left there.
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
            [python, str(WORKER), str(theirs.fileno())],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        return process, Connection(ours.detach())

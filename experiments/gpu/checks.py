"""The checks of `kit.py`: each answers one question that needs a GPU, and yields rows with numbers.

On a CPU (`SMALL`) each runs the same code at small size, where only the agreement of values means anything. Weights are
random; their dimensions are those of Qwen2.5-Omni in `conf/model/`.

Shapes: P prompt tokens, G = 16 completions of C tokens, T tokens of a packed row.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from echoink.benchmark.config import ShapeConfig
from echoink.benchmark.workload import make_model, make_workload
from echoink.common.errors import last_error
from echoink.common.files import read_rows
from echoink.config.compose import compose
from echoink.config.schema import Dimensions, Dtype
from echoink.models import shared_prefix
from echoink.models.family import PromptInputs
from echoink.models.loading import lora
from echoink.models.logprobs import packed_logprobs
from echoink.models.shared_prefix import Layout
from echoink.rollout import decoder, generate, sampling, weight_transfer

DEVICE = os.environ.get("DEVICE", "cuda")
SMALL = DEVICE == "cpu"
G = 16
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TINY = Dimensions(layers=2, width=256, feed_forward=512, heads=4, key_heads=2, vocabulary=504)


@dataclass(frozen=True)
class Row:
    """One number, or one finding."""

    name: str
    value: float | str
    unit: str = ""
    ok: bool | None = None
    """None: a measurement, which cannot fail."""


def architecture(name: str) -> Dimensions:
    """The dimensions of a published model; small ones on a CPU."""
    return TINY if SMALL else compose([f"model={name}", "dataset.path=x"])[0].config.model.architecture


def thinker(name: str = "qwen2_5_omni_7b", dtype: str = "bfloat16", layers: int | None = None, towers: int = 2):
    """A model with random weights and our attention, with `towers` layers in each tower."""
    d = architecture(name)
    shape = ShapeConfig(
        layers=min(layers or d.layers, d.layers),
        width=d.width,
        feed_forward=d.feed_forward,
        heads=d.heads,
        key_heads=d.key_heads,
        vocabulary=d.vocabulary,
        prompt_tokens=580,
        completion_tokens=200,
        group_size=G,
        prompts=1,
        pixels=200_704,
        audio_seconds=10,
        tower_width=1280 if towers > 4 else 160,
        tower_layers=towers,
        dtype=Dtype[dtype],
        rows_checkpointing=False,
    )
    model = make_model(shape, 0, torch.device(DEVICE))
    shared_prefix.install(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, shape


def with_lora(model):
    """The model with LoRA inside its linear layers, as in decoding."""
    from peft import get_peft_model

    model.requires_grad_(False)
    get_peft_model(model, lora(16, 32, 0.0, LINEAR))
    return model


def text_prompt(tokens: int, seed: int = 0) -> PromptInputs:
    """P random tokens without media."""
    drawn = torch.randint(20, 400, (tokens,), generator=torch.Generator().manual_seed(seed))
    return PromptInputs(drawn, torch.arange(tokens).expand(3, -1).clone(), {})


def synchronize() -> None:
    if not SMALL:
        torch.cuda.synchronize()


def timed(work: Callable[[], object], times: int = 3, warm: int = 1) -> float:
    """Mean seconds of a call, after `warm` calls that are not timed."""
    for _ in range(warm):
        work()
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return (time.perf_counter() - began) / times


def peak_gib() -> float:
    return 0.0 if SMALL else torch.cuda.max_memory_allocated() / 2**30


def forget() -> None:
    if not SMALL:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def autocast(enabled: bool = True):
    return torch.autocast(DEVICE, torch.bfloat16, enabled=enabled)


# --- parity of kernels ---


def flex() -> Iterator[Row]:
    """FlexAttention as the loss uses it: values and gradients against the split attention, and its time."""
    heads, keys, width = (4, 2, 16) if SMALL else (28, 4, 128)
    large = [(579, [200] * G), (999, [150, 250, 3, 77] * 4), (101, [5] * 3)]
    shapes = [(60, [20] * 4), (33, [5, 9])] if SMALL else large
    scale = width**-0.5

    def tensors(tokens: int, dtype: torch.dtype) -> list[Tensor]:
        make = lambda h: torch.randn(1, h, tokens, width, device=DEVICE, dtype=dtype, requires_grad=True)  # noqa: E731
        return [make(heads), make(keys), make(keys)]

    ours = shared_prefix.by_parts if SMALL else shared_prefix.by_blocks
    for dtype, most in ((torch.float32, 2e-4), (torch.bfloat16, 4e-2)):
        worst = 0.0
        for prefix, lengths in shapes:
            layout = Layout(((prefix, tuple(lengths)),))
            given = tensors(layout.tokens, dtype)
            found = ours(*given, layout, scale)
            upstream = torch.randn_like(found)
            found.backward(upstream)
            gradients = [x.grad.float().clone() for x in given]
            plain = [x.detach().float().requires_grad_() for x in given]
            expected = shared_prefix.by_parts(*plain, layout, scale)
            expected.backward(upstream.float())
            worst = max(worst, float((found.float() - expected).abs().max()))
            for mine, other in zip(gradients, plain, strict=True):
                worst = max(worst, float((mine - other.grad).norm() / other.grad.norm()))
        yield Row(f"FlexAttention, {dtype}: largest difference, values and gradients", worst, "", worst < most)
    if SMALL:
        return
    for prefix, length in ((579, 200), (999, 768)):
        make = lambda p=prefix, c=length: Layout(((p, (c,) * G),))  # noqa: E731
        layout = make()
        given = tensors(layout.tokens, torch.bfloat16)
        forget()
        mask = timed(lambda m=make: m().block_mask(torch.device("cuda", torch.cuda.current_device())), 10)
        both = timed(lambda g=given, at=layout: ours(*g, at, scale).sum().backward(), 5)
        yield Row(f"block mask, T = {layout.tokens}", 1000 * mask, "ms")
        yield Row(f"attention of a layer, forward and backward, T = {layout.tokens}", 1000 * both, "ms")


def head() -> Iterator[Row]:
    """TRL's fused head with the real vocabulary size, against log_softmax."""
    if SMALL:
        yield Row("fused head", "needs a GPU (Triton)")
        return
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    d, rows = architecture("qwen2_5_omni_7b"), 1024
    hidden = torch.randn(rows, d.width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(d.vocabulary, d.width, device=DEVICE, dtype=torch.bfloat16)).requires_grad_()
    labels = torch.randint(0, d.vocabulary, (rows,), device=DEVICE)

    def fused(h: Tensor, at: Tensor) -> Tensor:
        return ChunkedLogProbFunction.apply(h, weight, None, at, 1.0, 32_768, None, 1.0, ("log_probs", "entropy"))[0]

    fused(hidden, labels).sum().backward()
    mine = hidden.grad.float().clone()
    logps = fused(hidden, labels).detach()
    hidden.grad = weight.grad = None
    expected = (hidden @ weight.t()).float().log_softmax(-1).gather(1, labels[:, None])[:, 0]
    expected.sum().backward()
    gap = float((logps - expected).abs().max())
    yield Row("fused head: largest difference of log-probabilities", gap, "nats", gap < 5e-2)
    relative = float((mine - hidden.grad.float()).norm() / hidden.grad.float().norm())
    yield Row("fused head: relative difference of gradients", relative, "", relative < 2e-2)


# --- decoding ---


def capturing(seconds: list[float]) -> Callable[[], decoder.Capture]:
    """Capture steps as CUDA graphs; on a CPU they are computed again in the same slots. Records the seconds."""

    def graphs() -> decoder.Capture:
        make = (lambda step: step) if SMALL else decoder.cuda_graphs()

        def capture(step: decoder.Step) -> decoder.Step:
            synchronize()
            began = time.perf_counter()
            replay = make(step)
            synchronize()
            seconds.append(time.perf_counter() - began)
            return replay

        return capture

    return graphs


def graph() -> Iterator[Row]:
    """Captured decoding: whether tokens equal those without a graph while rows end; the time of a capture."""
    length = 12 if SMALL else 200  # on a GPU: windows of 64, 128 and 200 tokens
    prompts = [text_prompt(60 if SMALL else 580, seed) for seed in range(2)]
    noise = torch.stack([sampling.uniforms(0, 0, str(seed), group_size=G, length=length) for seed in range(2)])
    # Rows end at different steps: a token in so many ends its row, whatever the size of the vocabulary.
    ends = range(20, architecture("qwen2_5_omni_7b").vocabulary, 4 if SMALL else 40)
    how = sampling.Sampling(1.0, 0.95, 50, length, tuple(ends))
    kinds = {
        "float32": ("float32", False, False),
        "float32 masters under autocast": ("float32", False, True),
        "bfloat16": ("bfloat16", False, True),
        "bfloat16 with LoRA": ("bfloat16", True, True),
    }
    for name, (dtype, adapts, cast) in kinds.items():
        model, _ = thinker(dtype=dtype, layers=4)
        model = with_lora(model) if adapts else model
        captures: list[float] = []
        captured, plain = decoder.Decoder(model, capturing(captures)), decoder.Decoder(model)

        def rollout(one: decoder.Decoder, of=model, casts=cast) -> list[list[int]]:
            with autocast(casts):
                return generate.generate(of, prompts, noise, temperatures=[1.0] * G, sampling=how, decoder=one)

        found = rollout(captured), rollout(plain)
        same, first = sum(one == other for one, other in zip(*found, strict=True)), len(captures)
        exact = same == 2 * G if dtype == "float32" and not cast else None
        yield Row(f"{name}: rows of {2 * G} with the same tokens with and without a graph", same, "rows", exact)
        lengths = sorted({len(row) for row in found[0]})
        yield Row(f"{name}: different lengths of rows", len(lengths), "", len(lengths) > 2)
        yield Row(f"{name}: captured shapes", first, "", first > 1)
        again = rollout(captured)
        yield Row(f"{name}: a second rollout has the same tokens", str(again == found[0]), "", again == found[0])
        yield Row(f"{name}: {first} captures in the first rollout", sum(captures[:first]), "s")
        more = len(captures) - first
        yield Row(f"{name}: captures in the second", more, "", more == 0 or None)
        del model, captured, plain
        forget()


def decode() -> Iterator[Row]:
    """A decoded token with real dimensions: milliseconds, bytes per second, and the choice of the token."""
    cases = (("qwen2_5_omni_7b", 1, False), ("qwen2_5_omni_3b", 8, True))
    for name, count, adapts in cases:
        model, _ = thinker(name)
        model = (with_lora(model) if adapts else model).eval()
        held = sum(p.nbytes for p in model.model.language_model.layers.parameters()) + model.lm_head.weight.nbytes
        for length in (8,) if SMALL else (96, 256, 768):
            with torch.no_grad(), autocast():
                prompts = [text_prompt(60 if SMALL else 580, seed) for seed in range(count)]
                start = generate.prefill(model, prompts)
                one = decoder.Decoder(model, capturing([]))
                one.begin(start.cache, start.mask, G, length)
                rows = G * count
                tokens = torch.zeros(rows, dtype=torch.long, device=DEVICE)
                places = torch.full((rows,), 580, device=DEVICE)
                for _ in range(length // 2):  # to the middle of a completion, so that attention reads as much as there
                    one(tokens, places)
                # A window that grows is captured anew: that is no part of a token's time.
                left = decoder.WINDOW - length // 2 - 2 if length // 2 < decoder.WINDOW else 20
                step = timed(lambda d=one, t=tokens, p=places: d(t, p), min((length - 4) // 2, 20, left), 1)
                logits = start.logits.repeat_interleave(G, 0)
                noise, warm = torch.rand(rows, device=DEVICE), torch.ones(rows, device=DEVICE)
                pick = timed(
                    lambda x=logits, n=noise, w=warm: sampling.choose(x, n, w, top_p=0.95, top_k=50).tolist(), 5
                )
            of = f"{name}{' LoRA' if adapts else ''}, {rows} rows, C = {length}"
            yield Row(f"{of}: a token", 1000 * step, "ms")
            yield Row(f"{of}: reading the weights alone", held / step / 1e9, "GB/s")
            yield Row(f"{of}: choosing, top_k 50", 1000 * pick, "ms")
        del model, start, one
        forget()


# --- the loss ---


def update() -> Iterator[Row]:
    """Reference and update of one group of the 7B: seconds, TFLOP/s, memory, with and without checkpointing."""
    from trl.trainer.utils import add_fused_lm_head

    model, _ = thinker()
    add_fused_lm_head(model)
    model.train()
    for tower in (model.model.audio_tower, model.model.visual):
        tower.requires_grad_(False)
    weights = sum(p.numel() for p in model.model.language_model.layers.parameters())
    for prompt, length in ((60, 10),) if SMALL else ((580, 200), (1000, 768)):
        ids = torch.randint(20, 400, (G, length), device=DEVICE)
        mask, asked = torch.ones_like(ids).bool(), text_prompt(prompt)
        tokens = prompt - 1 + G * length

        def forward(one=asked, at=ids, of=mask) -> Tensor:
            with autocast():
                return packed_logprobs(model, [one], None, prompt_index=[0] * G, completion_ids=at, scored=of)[0]

        def reference(work=forward) -> None:
            with torch.no_grad():
                work()

        def learn(work=forward) -> None:
            work().sum().backward()
            model.zero_grad(set_to_none=True)

        for checkpoints in (True, False) if length <= 200 else (True,):
            if checkpoints:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()
            forget()
            of = f"T = {tokens}, {'checkpoints' if checkpoints else 'no checkpoints'}"
            seen, learnt = timed(reference), timed(learn)
            yield Row(f"reference, {of}", seen, "s")
            yield Row(f"reference, {of}: reached", 2 * weights * tokens / seen / 1e12, "TFLOP/s")
            yield Row(f"update, {of}", learnt, "s")
            yield Row(f"update, {of}: reached", (8 if checkpoints else 6) * weights * tokens / learnt / 1e12, "TFLOP/s")
            yield Row(f"update, {of}: peak memory", peak_gib(), "GiB")


def towers() -> Iterator[Row]:
    """Both towers at full depth in bfloat16 with sdpa: a prompt's picture and ten seconds of sound."""
    from echoink.models.encoders import encode_media

    model, shape = thinker(layers=1, towers=2 if SMALL else 32)
    prompt = make_workload(model, shape, 0).prompts[0]

    def run(gradients: bool) -> None:
        with torch.set_grad_enabled(gradients), autocast():
            (features,) = encode_media(model.model.train(), [prompt])
        if gradients:
            sum(value.float().sum() for value in features.values()).backward()

    yield Row("towers, forward", 1000 * timed(lambda: run(False), 5), "ms")
    yield Row("towers, forward and backward", 1000 * timed(lambda: run(True), 3), "ms")


# --- several parts together ---


def fsdp_graph() -> Iterator[Row]:
    """Capture under FSDP2's hooks on a mesh of one; whether all layers of a pass share one layout."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from trl.trainer.utils import add_fused_lm_head

    from echoink.distributed import sharding

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29601"}
    dist.init_process_group("gloo" if SMALL else "nccl", rank=0, world_size=1)
    try:
        mesh, (model, _) = init_device_mesh(DEVICE, (1,)), thinker(dtype="float32", layers=4)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        parts: list[nn.ModuleList] = [model.model.language_model.layers, model.model.visual.blocks]
        for layer in (layer for part in (*parts, model.model.audio_tower.layers) for layer in part):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        sharding.register_root(model)
        length = 8 if SMALL else 48
        noise, how = (
            sampling.uniforms(0, 0, "a", group_size=G, length=length)[None],
            sampling.Sampling(1.0, 0.95, 50, length, (21,)),
        )
        with autocast(), sharding.unsharded(model):
            found = generate.generate(model, [text_prompt(60)], noise, temperatures=[1.0] * G, sampling=how)
        yield Row("decoding under FSDP2's hooks", len(found), "rows", len(found) == G)
        seen, attend = set(), Layout.attend
        Layout.attend = lambda self, *of, **named: (seen.add(self), attend(self, *of, **named))[1]
        try:
            add_fused_lm_head(model)
            ids = torch.randint(20, 400, (G, length), device=DEVICE)
            with autocast():
                logps, _ = packed_logprobs(
                    model.train(),
                    [text_prompt(60)],
                    None,
                    prompt_index=[0] * G,
                    completion_ids=ids,
                    scored=torch.ones_like(ids).bool(),
                )
            logps.sum().backward()
        finally:
            Layout.attend = attend
        yield Row("layouts, and so block masks, of a forward and backward pass", len(seen), "", len(seen) == 1)
    finally:
        dist.destroy_process_group()


RECEIVER = """
import sys
import torch
from multiprocessing.connection import Connection
from echoink.rollout import weight_transfer
connection, device = Connection(int(sys.argv[1])), sys.argv[2]
while handles := connection.recv():
    copies = [(name, weight_transfer.of_handle(handle).clone().to(device)) for name, handle in handles]
    connection.send(weight_transfer.digests(copies))
"""


def push() -> Iterator[Row]:
    """Send weights to another process on this GPU, as `generation=vllm` does: do they arrive, and how fast?"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        numbers = [str(theirs.fileno()), DEVICE]
        child = subprocess.Popen([sys.executable, "-c", RECEIVER, *numbers], pass_fds=[theirs.fileno()])
        connection = Connection(ours.detach())
    try:
        shape, count = ((8, 1 << 20), 1) if SMALL else ((256, 1 << 20), 4)  # four tensors of 0.5 GB each
        dtype = torch.float32 if SMALL else torch.bfloat16  # a CPU sends values by numpy, which has no bfloat16
        for turn in (1, 2):  # the first opens the handles
            weights = {
                f"model.layers.{n}.mlp.up_proj.weight": torch.randn(shape, dtype=dtype, device=DEVICE)
                for n in range(count)
            }
            synchronize()
            began = time.perf_counter()
            connection.send([(name, weight_transfer.handle(each)) for name, each in weights.items()])
            held = connection.recv()
            seconds, size = time.perf_counter() - began, sum(each.nbytes for each in weights.values())
            differ = weight_transfer.differing(weight_transfer.digests(weights.items()), held)
            yield Row(f"turn {turn}: parts that differ after the transfer", len(differ), "", not differ)
            yield Row(f"turn {turn}: sent, copied and checksummed", size / 1e9 / seconds, "GB/s")
        connection.send([])
        status = child.wait(60)
        yield Row("the other process's exit status", status, "", status == 0)
    finally:
        child.kill()


ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    [f"trainer.steps={2 if SMALL else 4}", f"generation.max_new_tokens={12 if SMALL else 64}", "dataset.train=64"]
    + ["dataset.dev=8", "dataset.valid=16", "eval.greedy=false"]
    + (["trainer.prompts_per_step=4", "trainer.micro_batch_prompts=2"] if SMALL else [])
)
"""A training of a few steps."""


def training(run: Path, *words: str) -> subprocess.Popen:
    """Start a training into a run folder, without MLflow, which the machine need not have."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if SMALL else {}
    command = [sys.executable, "-m", "echoink.train", *words, "tracking=off", f"hydra.run.dir={run}"]
    pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=run.parent, env=environment, **pipe)


def trained(run: Path, *words: str) -> tuple[list[dict], str]:
    """Train to the end; the rows of metrics.jsonl, and the error if there is one."""
    process = training(run, *words)
    error = process.communicate()[1]
    return read_rows(run / "metrics.jsonl"), last_error(error)[:200] if process.returncode else ""


def train() -> Iterator[Row]:
    """Train the embedded model, a few steps of each kind: is the first KL 0, are all numbers finite?"""
    kinds = {
        "float32": [],
        "bfloat16": ["trainer.bf16=true"],
        "LoRA, bfloat16, frozen towers": ["trainer.bf16=true", "adapter=lora", "model.freeze=[audio,vision]"],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, words in kinds.items():
            words = [*SHORT, "eval.base=false", "grpo.beta=0.04", "trainer.gradient_checkpointing=true", *words]
            rows, error = trained(Path(folder) / name.split(",")[0], *words)
            if error:
                yield Row(f"{name}: training", error, "", False)
                continue
            kl = rows[0]["grpo/kl"]
            yield Row(f"{name}: KL of the first step", kl, "nats", abs(kl) < (1e-6 if name == "float32" else 1e-3))
            finite = all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
            yield Row(f"{name}: every number is finite", str(finite), "", finite)
            with suppress(KeyError):
                yield Row(f"{name}: a step", sum(row["time/step"] for row in rows[1:]) / (len(rows) - 1), "s")


def resume() -> Iterator[Row]:
    """Ask a training to end after its first step and resume it: how far is it from one that was not interrupted?"""
    words = [*SHORT, "eval.base=false"]
    with tempfile.TemporaryDirectory() as folder:
        whole, error = trained(Path(folder) / "whole", *words)
        if error:
            yield Row("training", error, "", False)
            return
        run = Path(folder) / "interrupted"
        process = training(run, *words)
        while process.poll() is None and not read_rows(run / "metrics.jsonl"):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        yield Row("exit status after SIGTERM", process.returncode, "", process.returncode == 128 + signal.SIGTERM)
        before = len(read_rows(run / "metrics.jsonl"))
        yield Row("steps before it", before, f"of {len(whole)}", 0 < before < len(whole))
        resumed, error = trained(run, *words, "resume=auto")
        steps = [row["step"] for row in resumed]
        yield Row("steps of the resumed run", error or str(steps), "", steps == [row["step"] for row in whole])
        pairs = [
            (row[name], value)
            for row, wanted in zip(resumed, whole, strict=False)
            for name, value in wanted.items()
            if not name.startswith(("time/", "perf/", "timestamp")) and isinstance(value, int | float)
        ]
        apart = max((abs(one - other) / max(abs(other), 1e-9) for one, other in pairs), default=math.inf)
        # Exact on a CPU. On a GPU kernels may add up in another order, and then a completion can differ.
        yield Row("largest relative difference of a metric", apart, "", apart == 0 if SMALL else None)


def default() -> Iterator[Row]:
    """The default run to its end: does it learn, and how long does it take?"""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        rows, error = trained(Path(folder) / "run", *(SHORT if SMALL else []))
        if error:
            yield Row("training", error, "", False)
            return
        yield Row(f"{len(rows)} steps with evaluations", time.perf_counter() - began, "s")
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
        before, after = (100 * summary[phase]["accuracy"] for phase in ("base", "final"))
        yield Row("accuracy before", before, "%")
        yield Row("accuracy after", after, "%", None if SMALL else after > before + 20)


CHECKS: dict[str, Callable[[], Iterator[Row]]] = {
    "graph": graph,
    "flex": flex,
    "fsdp_graph": fsdp_graph,
    "head": head,
    "train": train,
    "resume": resume,
    "decode": decode,
    "update": update,
    "towers": towers,
    "push": push,
    "default": default,
}
"""The checks most likely to crash come first, the longest last."""

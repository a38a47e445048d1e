"""Starts vLLM for a run, one engine beside each process."""

import torch

from echoink.common import console
from echoink.config.schema import Adapter, Dtype, Task
from echoink.distributed import collectives
from echoink.distributed.process_group import processes
from echoink.models.loading import rank_of
from echoink.planning import memory
from echoink.rollout import vllm_engine
from echoink.run_folder.folder import RunFolder
from echoink.training.setup import Job


def start(job: Job, files: RunFolder, longest: int) -> vllm_engine.Engine:
    """Start vLLM beside this process, for the rollouts of a run, for its evaluations, or for both.

    Args:
        job: model and configuration of the run.
        files: the run's folder, for the engine's log.
        longest: tokens of the longest prompt.

    Raises:
        UserError: there is no vLLM, or it does not start beside this process.
        RuntimeError: it does not start beside another process.
    """
    trainer, settings, state = job.config.trainer, job.config.generation.vllm, processes()
    bf16 = trainer.bf16 or job.config.model.dtype is Dtype.bfloat16
    weights = collectives.on_main_process(
        lambda: vllm_engine.passage(files.path, memory.gathered_bytes(memory.model_of(job.model), bf16))
    )
    own = f"engine.rank{state.process_index}.log" if state.process_index else "engine.log"
    rows = trainer.prompts_per_step // state.num_processes * job.config.grpo.group_size
    if not job.config.trains:
        rows = rows_of_evaluation(job, longest, bf16)
    learns = job.config.trains and job.config.adapter.kind is not Adapter.none
    rank = job.config.adapter.rank if learns else vllm_engine.adapter_rank(job.model)
    if job.config.task is Task.compare:  # the checkpoint answers after the model that is loaded now
        rank = max(rank, rank_of(job.config.checkpoint))
    started: list[vllm_engine.Engine] = []

    def begin() -> None:
        started.append(
            vllm_engine.Engine(
                job.model,
                job.processor.processor,
                vllm_engine.EngineSetup(
                    python=settings.python,
                    sampling=job.sampling,
                    rows=rows,
                    longest=longest,
                    bf16=bf16,
                    device=state.device,
                    sleeps=settings.sleep,
                    adapter_rank=rank,
                ),
                log=files.path / own,
                weights=weights,
                writes=state.is_local_main_process,
            )
        )

    console.say("engine", f"vLLM starts, its output is in {files.path / own} …")
    try:
        collectives.each(begin)
    except BaseException:
        for one in started:
            one.close()
        raise
    console.say("engine", f"vLLM {started[0].version} after {started[0].seconds:.0f} s, beside each process")
    return started[0]


def rows_of_evaluation(job: Job, longest: int, bf16: bool) -> int:
    """How many completions vLLM decodes together in an evaluation: as many as its cache has room for; others wait.

    At least 1 and at most `memory.MOST_PROMPTS`, which is also the number on a CPU.
    """
    device = processes().device
    if device.type != "cuda":
        return memory.MOST_PROMPTS
    model = memory.model_of(job.model)
    taken = model.weight_bytes + memory.gathered_bytes(model, bf16)  # the weights of the model and of the engine
    room = memory.USABLE * torch.cuda.mem_get_info(device)[1] - taken
    dtype = torch.bfloat16 if bf16 else torch.float32
    each = vllm_engine.cache_bytes(job.model, 1, longest + job.sampling.max_new_tokens, dtype)
    return max(1, min(memory.MOST_PROMPTS, int(room // each)))

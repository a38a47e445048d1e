"""What the configuration accepts and what it refuses, before anything heavy is imported."""

import shutil
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from echoink.common.errors import UserError
from echoink.common.keys import fields_of
from echoink.config.compose import SWEPT, compose
from echoink.config.effects import idle_in_evaluations
from echoink.config.foreign_names import HERE
from echoink.config.help import help_text
from echoink.config.mistakes import groups
from echoink.config.overrides import normalized, quoted
from echoink.config.paths import conf_dir
from echoink.config.schema import flatten, to_yaml
from echoink.config.validate import launched_processes
from echoink.planning.steps import training_steps
from tests.helpers.configs import config_of

YAMLS = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))


@pytest.mark.parametrize("path", [path for path in YAMLS if path.parent.name not in ("", "shape")], ids=str)
def test_every_shipped_file_composes(path):
    group, name = path.parent.name, path.stem
    elsewhere = (group == "dataset" and name != "synthetic") or (group == "experiment" and name != "quickstart")
    needs = ["dataset.path=somewhere"] if elsewhere else []
    needs += ["trainer.bf16=true"] if name.startswith("qwen2_5_omni") else []
    compose([f"{group}={name}", *needs])


def test_no_file_of_conf_is_left_out():
    assert {len(path.parts) for path in YAMLS} == {1, 2}
    assert [path.name for path in YAMLS if len(path.parts) == 1] == ["benchmark.yaml", "config.yaml"]
    assert {path.parent.name for path in YAMLS} == {"", "shape", *(group.name for group in groups())}


REFUSED = [
    ("reward.lamda_fmt=1", "did you mean reward.lambda_fmt"),
    ("+reward.lamda_fmt=1", "did you mean reward.lambda_fmt"),
    ("+reward.x=1", "unknown key reward.x"),
    ("+foo=1", "unknown key foo"),
    ("modle=tiny", "did you mean model"),
    ("grpo.group_size=1", "grpo.group_size=1 must be >= 2"),
    ("grpo.group_size=2.5", "grpo.group_size"),
    ("grpo.beta=-1", "grpo.beta=-1.0 must be >= 0"),
    ("grpo.clip=1", "must be < 1"),
    ("reward.lambda_acc=nan", "is not a finite number"),
    ("reward.lambda_acc=inf", "is not a finite number"),
    ("reward.lambda_acc=lots", "could not be converted to Float"),
    ("reward.match=strict", "lenient, exact, first_letter"),
    ("seed=4294967296", "seed=4294967296 must be < 4294967296"),
    ("seed=null", "not Optional"),
    ("model.freeze=[ears]", "audio, vision"),
    ("model.freeze=[audio,audio_encoder]", "names a part twice"),
    ("model.freeze=[audio,vision,language]", "nothing would learn"),
    ("experiment=typo", "available: ablate_beta, ablate_group_size, ablate_lambda_fmt"),
    ("experiment=null", "must be a string or a list"),
    ("experiment=quickstat", "did you mean quickstart"),
    ("+experiment=quickstart", "without +"),
    ("model=tinny", "did you mean tiny"),
    ("reward.lambda_fmt=0,1", "--multirun"),
    ("reward.lambda_fmt = 1", "without spaces"),
    ("dataset=avqa_r1_6k", "lacks dataset.path"),
    ("trainer.micro_batch_prompts=3", "not a multiple"),
    ("prompt.template='{question}'", "lacks {options}"),
    ("prompt.template='{question} {options} {sound}'", "bad field"),
    ("trainer.processes=3", "times trainer.processes=3"),
    ("eval.protocol=may20", "matched, release, may19"),
    ("model.attention=flash_attention_2", "trainer.bf16=true"),
    ("name=${oc.env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
    ("checkpoint=", "checkpoint= is empty"),
    ("name=", "name= is empty"),
    ("dataset.path=", "dataset.path= is empty"),
    ("tracking.uri=", "tracking.uri= is empty"),
    ("learning_rate=1e-4", "did you mean trainer.learning_rate?"),
    ("lr=1e-4", "here it is trainer.learning_rate"),
    ("grpo.num_generations=8", "here it is grpo.group_size"),
    ("adapter.r=8", "here it is adapter.rank"),
    ("report_to=wandb", "here it is tracking=mlflow or tracking=off"),
    ("model=Qwen/Qwen2.5-Omni-3B", "model.path=<folder or hub id>"),
    ("dataset=mine.jsonl", "dataset=rows dataset.path=<folder>"),
    ("eval.ablations=no_audio", "eval.ablations=[…]"),
    ("name=../x", "leads out of outputs/"),
    ("name=old/unfinished", "runs below unfinished/ are not found"),
    ("resume_allow=[trainer.step]", "unknown key trainer.step"),
    ("resume_allow=[trainer]", "unknown key trainer"),
    ("reward.file=", "reward.file= is empty"),
    ("reward.lambda_file=0.5", "reward.lambda_file has no effect here\n  → reward.file=mine.py"),
    ("reward.integration=twin", "reward.integration has no effect here\n  → reward=integration"),
    (
        "generation.vllm.sleep=false",
        "generation.vllm.sleep has no effect here\n  → generation=vllm, or eval.engine=vllm",
    ),
    ("eval.engine=vllm generation.vllm.alarm=1", "generation.vllm.alarm has no effect here\n  → generation=vllm: it"),
    ("trainer.epochs=3", "trainer.epochs has no effect here\n  → trainer.steps=null"),
    ("adapter.rank=8", "adapter.rank has no effect here\n  → adapter=lora"),
    ("eval.dev_samples=4", "eval.dev_samples has no effect here\n  → eval.every=20"),
    ("grpo.clip=0.1", "grpo.clip has no effect here\n  → the ratio of the first update"),
    ("grpo.advantage=rejection grpo.scale=none", "grpo.scale has no effect here"),
    ("grpo.advantage=rejection reward.lambda_fmt=2", "reward.lambda_fmt has no effect here"),
    ("task=sft grpo.beta=0.5", "grpo.beta has no effect here\n  → task=sft learns given responses"),
    ("sft.responses=9", "sft.responses has no effect here\n  → task=sft"),
    ("reward=integration reward.integration=twin reward.integration_scale=1", "reward.integration_scale has no effect"),
    ("reward.on_error=zero", "reward.on_error has no effect here\n  → reward.file=mine.py"),
    ("reward=integration reward.integration=redraw grpo.group_size=2", "grpo.group_size of at least 3"),
    ("model.dtype=bfloat16 trainer.bf16=true", "would learn in bfloat16"),
    ("task=compare checkpoint=x eval.base=false", "eval.base has no effect here\n  → task=compare asks both models"),
    ("eval.protocol=release eval.greedy=false", "eval.greedy has no effect here"),
    ("task=eval eval.protocol=release reward.match=exact", "reward.match has no effect here"),
    (f"grpo.advantage=rejection reward.file={__file__} reward.lambda_file=3", "reward.lambda_file has no effect here"),
    (f"task=sft reward.file={__file__} reward.lambda_file=3", "reward.lambda_file has no effect here"),
    ("checkpoint=outputs/x model.path=outputs/y", "model.path has no effect here\n  → checkpoint=… gives the weights"),
    ("generation.vllm.python=engine/bin/python", "generation.vllm.python has no effect here\n  → generation=vllm"),
    (
        "generation=vllm generation.vllm.correction=none generation.vllm.correction_max=9",
        "generation.vllm.correction_max has no effect here",
    ),
    ("eval.direct.system=x", "eval.direct.system has no effect here\n  → eval.protocol=may19"),
    ("dataset=rows dataset.path=x dataset.shortcut=ear", "dataset.shortcut has no effect here"),
    ("adapter=qlora trainer=fsdp2 trainer.bf16=true", "adapter=qlora cannot be divided by FSDP2"),
    ("model.max_pixels=3136", "model.min_pixels=12544 is more than model.max_pixels=3136\n  → lower"),
    ("model.min_video_frames=512", "model.min_video_frames=512 is more than model.max_video_frames"),
    ("task=sft generation=vllm", "task=sft generates no rollouts"),
    ("reward=integration reward.integration=twin generation=vllm", "vLLM draws its own: differences would be chance"),
    ("task=sft reward=integration", "task=sft learns responses"),
]


def test_names_of_other_trainers_lead_to_keys_that_there_are():
    keys, files = {key for key, _, _ in fields_of(config_of())}, {path.as_posix() for path in YAMLS}
    for name, here in HERE.items():
        assert not any(key.rpartition(".")[2] == name for key in keys), f"{name} is a key here"
        first = here.split(" ")[0].split(",")[0]
        key, _, value = first.partition("=")
        assert key in keys or f"{key}/{value}.yaml" in files or "<" in value or key == "reward.file", here


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_refused(override, message):
    with pytest.raises(UserError) as error:
        compose(override.split() if " = " not in override and "'" not in override else [override])
    assert message in str(error.value)


def test_bfloat16_weights_are_for_adapters_for_evaluation_and_for_what_keeps_others_beside_them():
    halves = ["model.dtype=bfloat16", "trainer.bf16=true"]
    for words in (["adapter=lora"], ["task=eval"], ["trainer=zero3"]):
        assert compose([*halves, *words])


def test_a_number_of_processes_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", " ")
    assert launched_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "abc")
    with pytest.raises(UserError, match="WORLD_SIZE=abc is not a number of processes"):
        launched_processes()


def test_tasks_that_srun_started_and_that_do_not_know_of_each_other_are_refused(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "8")
        with pytest.raises(UserError, match="8 processes were started without WORLD_SIZE"):
            compose(["trainer=ddp"])
        assert compose([])[0].config.trainer.processes == 1, "of one process: runs side by side are meant"
        monkeypatch.setenv("WORLD_SIZE", "8")
        assert compose(["trainer=ddp"])[0].config.trainer.processes == 8
        monkeypatch.delenv("WORLD_SIZE")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "word", ["dataset.path=~/d", "dataset.path='~/d'", "hydra.run.dir='~/runs'", "checkpoint=~", "model.path='~/m'"]
)
def test_a_home_that_no_shell_expands_is_refused_with_what_expands(word):
    with pytest.raises(UserError) as error:
        compose([word])
    assert f'"{word.partition("=")[0]}=$HOME' in error.value.hint


def test_a_file_of_ones_own_that_hydra_would_not_read_is_refused(tmp_path):
    shutil.copytree(conf_dir(), tmp_path / "conf")
    assert compose(["prompt=reason"], config_dir=str(tmp_path / "conf")), "the same file may be there"
    mine = tmp_path / "conf/prompt/reason.yaml"
    mine.write_text(mine.read_text() + "# mine\n")
    with pytest.raises(UserError, match=f"{mine} would not be read: a shipped file has its name"):
        compose(["prompt=reason"], config_dir=str(tmp_path / "conf"))


def test_a_key_without_effect_in_an_experiment_of_ones_own_is_warned_of(tmp_path):
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment/mine.yaml"
    mine.write_text("# @package _global_\ntrainer:\n  epochs: 3\n  learning_rate: 1e-5\n")
    with pytest.warns(UserWarning, match=f"{mine}: trainer.epochs has no effect here .trainer.steps=null") as said:
        compose(["experiment=mine"], config_dir=str(tmp_path))
    assert len(said) == 1


def test_both_weights_zero_is_refused():
    with pytest.raises(UserError, match="both 0"):
        compose(["reward.lambda_acc=0", "reward.lambda_fmt=0"])


def test_a_sweep_is_checked_for_every_job():
    assert len(compose(["reward.lambda_fmt=0,0.5,1", "seed=0,1"], multirun=True)) == 6
    assert [job.config.adapter.kind.name for job in compose(["adapter=glob(*)"], multirun=True)] == [
        "lora",
        "none",
        "qlora",
    ]
    with pytest.raises(UserError, match=r"adapter=glob\(x\*\) matches nothing\n.*there are lora, none, qlora"):
        compose(["adapter=glob(x*)"], multirun=True)
    with pytest.raises(UserError, match="must be >= 0"):
        compose(["grpo.beta=0,0.1,-1"], multirun=True)


def test_a_key_may_be_without_effect_in_some_jobs_of_a_grid_but_not_in_all(monkeypatch):
    assert len(compose(["adapter=none,lora", "adapter.rank=8,16"], multirun=True)) == 4
    assert compose(["reward.lambda_int=interval(0,1)", "reward.integration=twin"], multirun=True)
    assert compose(["eval.protocol=release", "reward.match=exact"]), "training reads so"
    with pytest.raises(UserError, match="adapter.rank has no effect here"):
        compose(["adapter.rank=8,16"], multirun=True)
    monkeypatch.setenv(SWEPT, "adapter adapter.rank")  # as such a job sees it
    assert compose(["adapter=none", "adapter.rank=8"])


def test_keys_of_training_may_stand_beside_an_evaluation_but_no_sweep_over_them():
    """A training's command line is used again with task=eval: the run says what of it has no effect."""
    words = ["task=eval", "grpo.beta=0.1", "trainer.steps=3", "trainer.bf16=true", "seed=1"]
    given = {word.partition("=")[0] for word in words}
    assert idle_in_evaluations(given, config_of(*words)) == ["grpo.beta", "trainer.steps"]
    assert idle_in_evaluations(given, config_of(*words[1:])) == []
    of_rewards = {"reward.lambda_acc", "reward.lambda_brevity"}  # one of a package's own is scored in evaluations too
    assert idle_in_evaluations(of_rewards, config_of("task=eval")) == ["reward.lambda_acc"]
    engines = ["generation=vllm", "eval.engine=vllm"]
    assert idle_in_evaluations({"generation"}, config_of("task=eval", engines[0])) == ["generation.engine"]
    assert idle_in_evaluations({"generation"}, config_of("task=eval", *engines)) == []
    assert compose(["task=eval", "grpo.beta=0.1", "seed=0,1"], multirun=True)
    assert compose(["task=eval,train", "grpo.beta=0,0.1"], multirun=True)
    with pytest.raises(UserError, match="grpo.beta has no effect here, and the jobs differ in it"):
        compose(["task=eval", "grpo.beta=0,0.1"], multirun=True)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=2026_11_29", "name", "2026_11_29"),
        ("name=1.10", "name", "1.10"),
        ("name=1e3", "name", "1e3"),
        ("checkpoint=0123", "checkpoint", "0123"),
        ("dataset.path=true", "dataset.path", "true"),
        ("checkpoint=null", "checkpoint", None),
        ("grpo.beta=0.10", "grpo.beta", 0.1),
        ("++checkpoint=0123", "checkpoint", "0123"),
    ],
)
def test_a_text_that_reads_like_a_number_stays_as_it_was_written(override, key, value):
    (read,) = OverridesParser.create().parse_overrides([normalized(override)])
    assert (read.key_or_group, read.value()) == (key, value)


def test_two_plus_signs_before_a_known_key_change_nothing():
    """Also where a key is looked for among those that were given."""
    assert normalized("++trainer.steps=3") == "trainer.steps=3"
    assert normalized("++model.figures.layers=5") == "++model.figures.layers=5"
    with pytest.raises(UserError, match=r"adapter\.rank has no effect here"):
        compose(["++adapter.rank=8"])


def test_names_that_read_like_numbers_stay_in_a_run_and_in_a_sweep():
    (run,) = compose(["name=2026_11_29", "hydra.run.dir=1.10"])
    assert (run.config.name, str(run.folder)) == ("2026_11_29", "1.10")
    assert [job.config.name for job in compose(["name=1.10,true"], multirun=True)] == ["1.10", "true"]


def test_an_experiment_wins_over_groups_and_the_command_line_over_it():
    composed = compose(["experiment=quickstart", "trainer.steps=7"])[0]
    assert composed.config.trainer.steps == 7
    assert composed.config.grpo.group_size == 4
    assert composed.config.name == "quickstart"
    assert composed.folder.parts[:2] == ("outputs", "quickstart")


def test_the_papers_values():
    values = flatten(compose(["experiment=echoink_r1_7b", "dataset.path=data"])[0].config)
    paper = {
        "model.path": "Qwen/Qwen2.5-Omni-7B",
        "model.dtype": "float32",
        "model.freeze": [],
        "model.max_pixels": 200_704,
        "model.max_audio_seconds": 10.0,
        "model.max_prompt_tokens": 16_384,
        "reward.lambda_acc": 1.0,
        "reward.lambda_fmt": 1.0,
        "reward.match": "exact",
        "grpo.group_size": 16,
        "grpo.beta": 0.001,
        "grpo.loss": "grpo",
        "grpo.scale": "group",
        "grpo.updates_per_rollout": 1,
        "generation.temperature": 1.0,
        "generation.top_p": 0.95,
        "generation.top_k": 50,
        "generation.max_new_tokens": 768,
        "trainer.prompts_per_step": 8,
        "trainer.learning_rate": 1e-6,
        "trainer.schedule": "cosine",
        "trainer.warmup_steps": 0,
        "trainer.weight_decay": 0.01,
        "trainer.max_grad_norm": 5.0,
        "trainer.bf16": True,
        "trainer.gradient_checkpointing": True,
    }
    assert {key: values[key] for key in paper} == paper


def test_run_folders_of_the_same_second_differ():
    assert compose([])[0].folder != compose([])[0].folder


def test_every_field_says_what_it_is_and_help_shows_it():
    text = help_text()
    for key, spec, _ in fields_of(compose([])[0].config):
        assert spec.metadata["doc"], key
        assert f"  {key} " in text and spec.metadata["doc"] in text
    assert "experiment   ablate_beta, " in text and "quickstart" in text and "echoink_r1_7b" in text


def test_the_resolved_configuration_composes_to_itself():
    from omegaconf import OmegaConf

    config = compose(["experiment=quickstart"])[0].config
    from echoink.config.validate import validate

    assert validate(OmegaConf.create(to_yaml(config))) == config


def test_composing_imports_nothing_heavy():
    code = (
        "import sys; from echoink.config.compose import compose; compose([]);"
        "heavy = ('torch', 'transformers', 'trl', 'mlflow', 'datasets', 'soundfile', 'PIL');"
        "print([module for module in heavy if module in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_folder_of_ones_own_adds_files_to_the_groups(tmp_path):
    (tmp_path / "prompt").mkdir()
    (tmp_path / "prompt/terse.yaml").write_text("system: ''\ntemplate: '{question} {options} {answer}{end_answer}'\n")
    with pytest.raises(UserError, match="available: cued, direct, plain, reason"):
        compose(["prompt=terse"])
    found = compose(["prompt=terse"], config_dir=str(tmp_path))[0].config.prompt
    assert found.template == "{question} {options} {answer}{end_answer}"
    assert found.options == "Options:\n{options}"


def test_an_experiment_may_say_what_it_sweeps_over():
    overrides = ["experiment=compare_released", "dataset.path=x", "trainer.bf16=true"]
    protocols = [job.config.eval.protocol.name for job in compose(overrides, multirun=True)]
    assert protocols == ["matched", "release", "may19"]
    (one,) = compose([*overrides, "eval.protocol=may19"], multirun=True)
    assert one.config.eval.protocol.name == "may19", "the command line goes before the file"


def test_the_papers_run_has_the_papers_values():
    """The table of paper.md, value for value."""
    config = compose(["experiment=echoink_r1_7b", "dataset.path=x"])[0].config
    assert (config.model.path, config.model.dtype.name, config.model.freeze) == (
        "Qwen/Qwen2.5-Omni-7B",
        "float32",
        [],
    )
    assert (config.adapter.kind.name, config.trainer.bf16, config.model.attention.name) == (
        "none",
        True,
        "sdpa",
    )
    trainer, generation = config.trainer, config.generation
    assert (trainer.prompts_per_step, trainer.processes, config.grpo.group_size) == (8, 8, 16)
    assert (trainer.steps, trainer.epochs, training_steps(trainer, 1, 4490)) == (None, 1, 562)
    assert (trainer.learning_rate, trainer.schedule.name, trainer.warmup_steps) == (1e-6, "cosine", 0)
    assert (trainer.weight_decay, trainer.max_grad_norm, trainer.gradient_checkpointing) == (0.01, 5, True)
    assert (config.grpo.beta, config.grpo.loss.name, config.grpo.scale.name, config.grpo.updates_per_rollout) == (
        0.001,
        "grpo",
        "group",
        1,
    )
    assert (generation.temperature, generation.top_p, generation.top_k, generation.max_new_tokens) == (1, 0.95, 50, 768)
    assert (config.reward.lambda_acc, config.reward.lambda_fmt, config.reward.match.name) == (1, 1, "exact")
    assert (config.model.max_pixels, config.model.max_audio_seconds, config.model.max_prompt_tokens) == (
        200_704,
        10,
        16_384,
    )
    assert trainer.save_every == 100


def test_the_sibling_differs_where_it_says():
    paper, small = (
        flatten(compose([f"experiment={name}", "dataset.path=x"])[0].config)
        for name in ("echoink_r1_7b", "echoink_r1_3b_lora")
    )
    different = {key for key in paper if paper[key] != small[key] and not key.startswith("model.architecture")}
    assert different == {
        "name",
        "model.path",
        "model.dtype",
        "model.freeze",
        "trainer.sharding",
        "adapter.kind",
        "trainer.processes",
        "trainer.learning_rate",
        "tracking.experiment",
    }


TOKEN = "hf_" + "aBcD" * 8


@pytest.mark.parametrize(
    "words",
    [
        [f"trainer.push_to_hub={TOKEN}"],
        [f"+hub_token={TOKEN}"],
        ["tracking.uri=https://me:pa55word@mlflow.example.org"],
        ["name=${oc.env:HF_TOKEN}"],
        ["name=${oc.env:FROM_OUTSIDE}"],
        [f"hydra.job.env_set.HF={TOKEN}"],
    ],
    ids=["value", "unknown key", "address", "environment", "what the environment holds", "hydra"],
)
def test_what_looks_like_a_secret_is_refused_and_not_repeated(monkeypatch, words):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("FROM_OUTSIDE", TOKEN)
    with pytest.raises(UserError, match="looks like a secret") as caught:
        compose(words)
    assert TOKEN not in str(caught.value) and "pa55word" not in str(caught.value)


@pytest.mark.parametrize("word", ["generation.max_new_tokens=9", "name=sk-learn", "tracking.uri=http://host:5000"])
def test_what_is_no_secret_is_taken(word):
    compose([word])


HOSTILE = {
    "object": b"steps: !!python/object/apply:os.system ['touch owned']\n",
    "name": b"steps: !!python/name:os.system\n",
    "target": b"_target_: os._exit\nsteps: 3\n",
    "inside": b"steps: {_target_: os._exit, _args_: [3]}\n",
    "tab": b"steps:\n\t- 3\n",
    "utf16": "steps: 3\n".encode("utf-16"),
    "binary": b"\x00\x01\x02",
    "list": b"- 1\n- 2\n",
    "resolver": b'steps: ${eval:\'__import__("os").system("touch owned")\'}\n',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_in_a_configuration_is_refused(tmp_path, monkeypatch, kind):
    """As a file of one's own beside ours; refused by our own error, nothing of it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/trainer").mkdir(parents=True)
    (tmp_path / "mine/trainer/bad.yaml").write_bytes(HOSTILE[kind])
    with pytest.raises(UserError):
        compose(["trainer=bad"], config_dir=str(tmp_path / "mine"))
    assert not (tmp_path / "owned").exists()


OWN_FILES = [  # what an experiment file of one's own says, what is said of it
    ("trainer:\n  step: 3", r"own\.yaml, line 3: unknown key trainer\.step\n.*did you mean trainer\.steps"),
    ("trainer:\n  steps: abc", r"own\.yaml, line 3: trainer\.steps: Value 'abc' of type 'str' could not be converted"),
    ("trainer:\n  steps: -3", r"own\.yaml, line 3: trainer\.steps=-3 must be >= 1"),
    ("trainr:\n  steps: 3", r"own\.yaml, line 2: unknown key trainr\n.*did you mean trainer\?"),
    ("grpo:\n  loss: gspo", r"own\.yaml, line 3: grpo\.loss: Invalid value 'gspo'"),
    ("reward: exact", r"own\.yaml: Merge error: str is not a subclass of RewardConfig"),
    ("seed: no", r"own\.yaml, line 2: seed: no is read as true or false"),
    ("name: off", r'own\.yaml, line 2: name: off is read as true or false\n.*"off" in quotes'),
    ("trainer:\n  steps: 010", r"own\.yaml, line 3: trainer\.steps: 010 is read as 8 \(octal\)\n.*write 10"),
    ("name: 1:30", r"own\.yaml, line 2: name: 1:30 is read as a number in base 60"),
    (
        "defaults:\n  - adapter: lora",
        r"own\.yaml: its defaults name experiment/adapter/lora.*\n.*override /adapter",
    ),
]


@pytest.mark.parametrize(("text", "said"), OWN_FILES)
def test_a_mistake_in_ones_own_file_is_named_with_file_line_and_key(text, said, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(UserError, match=said):
        compose(["experiment=own"], config_dir=str(tmp_path))


def test_letters_that_yaml_reads_as_text_are_taken_as_text(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text("# @package _global_\nname: y\n")
    assert compose(["experiment=own"], config_dir=str(tmp_path))[0].config.name == "y"


def test_a_file_without_its_first_line_is_told_of_it(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text("trainer:\n  steps: 3\n")
    with pytest.raises(UserError, match=r"own\.yaml lands under the key experiment\n.*# @package _global_"):
        compose(["experiment=own"], config_dir=str(tmp_path))


def test_plain_values_that_mean_what_they_say_are_taken(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = 'trainer:\n  steps: 1_000\n  learning_rate: 1e-5\n  bf16: true\nseed: 0\nname: "off"\n'
    (tmp_path / "experiment/own.yaml").write_text(f"# @package _global_\n{text}")
    config = compose(["experiment=own"], config_dir=str(tmp_path))[0].config
    assert (config.trainer.steps, config.trainer.bf16, config.name) == (1000, True, "off")


def test_a_long_value_beside_a_folder_of_ones_own_is_no_name_of_a_file(tmp_path):
    template = "{question} {options} {answer}{end_answer} " + "x" * 400
    config = compose([f"prompt.template='{template}'"], config_dir=str(tmp_path))[0].config
    assert config.prompt.template == template


def test_the_former_name_of_a_group_still_works_and_says_so():
    with pytest.warns(UserWarning, match="model.figures is called model.architecture now"):
        config = compose(["+model.figures.layers=5"])[0].config
    assert config.model.architecture.layers == 5 and config.model.architecture.width == 128
    assert config.model.figures == {} and "model.figures" not in flatten(config)


@pytest.mark.parametrize(
    "text",
    [
        "/x/dá",
        "实验",
        "a b",
        "it's",
        "a\\b",
        "a\\",
        "a\\'b",
        "null",
        "True",
        "nan",
        ".5",
        "../b",
        "x=1",
        "a,b",
        "(1)",
        "#1",
        "~a",
    ],
)
def test_any_text_is_quoted_so_that_hydra_reads_it_back(text):
    (found,) = compose([f"model.path={quoted(text)}"])
    assert found.config.model.path == text


@pytest.mark.parametrize("weight", ["nan", "inf"])
def test_the_weight_of_a_reward_of_ones_own_is_finite(tmp_path, weight):
    (tmp_path / "mine.py").touch()
    with pytest.raises(UserError, match=r"reward\.files\[0\]\.weight=.* is not a finite number"):
        compose([f"reward.files=[{{path: {tmp_path}/mine.py, weight: {weight}}}]"])


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=quickstart", "grpo.beta=0.1", "seed=3"],
        ["trainer=fsdp2", "adapter=lora", "model.freeze=[audio,vision]"],
        ["task=sft", "trainer.steps=3", "sft.responses=4"],
    ],
    ids=" ".join,
)
def test_what_other_tests_take_for_a_configuration_is_what_is_composed(words):
    assert config_of(*words) == compose(words)[0].config

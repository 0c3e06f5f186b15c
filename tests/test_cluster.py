"""scripts/cluster: its configurations read by accelerate's loaders, its commands parsed by the launchers' own parsers.

Every bash block of its README runs with stubs of `accelerate`, `torchrun` and SLURM in an otherwise bare PATH. The stubs write
down what they were called with. Two of the commands then train, as two nodes of one process on this machine.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed.run
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, _filter_args
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from datasets import Dataset, DatasetDict
from experiments.builtin_text import builtin_documents
from experiments.language_modeling import DataArguments, ModelArguments
from tokenizers import ByteLevelBPETokenizer
from transformers import HfArgumentParser, PreTrainedTokenizerFast, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from hf_refined_schedule import RefinedScheduleArguments
from hf_refined_schedule.cli import _parser

from .tiny import BIN, REPOSITORY, SCRIPTS, free_port, read_rows, run_command, tiny_model

CLUSTER = REPOSITORY / "scripts" / "cluster"
README = (CLUSTER / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
SLURM_SCRIPT = CLUSTER / "train.slurm"

STUB = f"""#!{sys.executable}
import json, os, subprocess, sys, time

name, arguments, node = os.path.basename(sys.argv[0]), sys.argv[1:], os.environ.get("SLURM_NODEID")
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps([name, arguments, node]) + "\\n")
if name == "sbatch":
    given = {{"SLURM_JOB_ID": "31234", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "64"}}
    os.execvpe("bash", ["bash", *arguments], {{**os.environ, **given}})
elif name == "scontrol" and arguments == ["show", "hostnames", "gpu[07-08]"]:
    print("gpu07\\ngpu08")
elif name == "srun":
    assert os.environ["SRUN_CPUS_PER_TASK"] == "64"
    time.sleep(float(os.environ.get("SRUN_SECONDS", "0")))
    while arguments[0].startswith("--"):
        del arguments[0]
    for node in range(2):
        subprocess.run(arguments, env={{**os.environ, "SLURM_NODEID": str(node)}}, check=True)
    sys.exit(int(os.environ.get("SRUN_STATUS", "0")))
"""


@pytest.fixture
def stubs(tmp_path):
    """The environment of a node where nothing but the stubs is installed."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in ("accelerate", "torchrun", "sbatch", "srun", "scontrol"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    (folder / "bash").symlink_to(shutil.which("bash"))
    (folder / "env").symlink_to(shutil.which("env"))
    return {"PATH": str(folder), "RECORD": str(tmp_path / "record")}


def recorded(environment):
    """(command, arguments, SLURM_NODEID) of every call of a stub."""
    return [json.loads(line) for line in Path(environment["RECORD"]).read_text().splitlines()]


def launches_of_readme(environment, node):
    """Run all of the README's bash blocks on one node; the launches that they come down to, in order."""
    Path(environment["RECORD"]).unlink(missing_ok=True)
    code = "".join(code for _, code in BLOCKS)
    assert code.count("NODE=0") == 1
    code = code.replace("NODE=0", f"NODE={node}")
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", code],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = recorded(environment)
    launches = [
        (command, arguments)
        for command, arguments, slurm_node in calls
        if command in ("accelerate", "torchrun") and slurm_node in (None, str(node))
    ]
    begun = re.findall(r"^(?:\w+=\S+ )?(\w+) ", code, re.M)
    assert set(begun) == {"export", "accelerate", "torchrun", "sbatch"}
    assert len(launches) == len(begun) - begun.count("export")  # each sbatch comes down to one launch on this node
    assert [command for command, *_ in calls].count("sbatch") == begun.count("sbatch") >= 2
    return launches


def accelerate_parsed(arguments):
    """What accelerate makes of `accelerate launch ARGUMENTS`: its own arguments, what it tells torch's launcher, the environment."""
    assert arguments[0] == "launch"
    options, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments[1:]))
    asked_port = options.main_process_port
    options.main_process_port = free_port()  # accelerate asks whether it is free
    with mock.patch.dict(os.environ):
        if options.use_deepspeed:
            options.deepspeed_fields_from_accelerate_config = ",".join([*defaults.deepspeed_config, "mixed_precision"])
            command, environment = prepare_deepspeed_cmd_env(options)
            assert command is None, "DeepSpeed's own launcher, which would start both nodes from the first"
        else:
            environment = prepare_multi_gpu_env(options)
    options.main_process_port = asked_port
    script = ["--training_script", options.training_script, "--training_script_args", options.training_script_args]
    return options, _filter_args(options, torch.distributed.run.get_args_parser(), script), environment


def check_script(module, script, arguments):
    """Parse what the launched script would; its training arguments if it has any."""
    if module:
        assert script == "hf_refined_schedule"
        options = _parser().parse_args(arguments)
        assert options.command == "launch"
        script, arguments = options.script, options.arguments
    kinds = {
        "scripts/run_clm.py": (ModelArguments, DataArguments, RefinedScheduleArguments),
        "train.py": (TrainingArguments,),
        "train_loop.py": (),
        "train_no_trainer.py": (),
    }[script]
    if not kinds:
        assert arguments == []
        return None
    return HfArgumentParser(kinds).parse_args_into_dataclasses([*arguments, "--use_cpu"])[-1]


# --- the configuration files ---


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed"])
def test_configurations_load(name):
    kinds = {
        "ddp": DistributedType.MULTI_GPU,
        "fsdp2": DistributedType.FSDP,
        "deepspeed": DistributedType.DEEPSPEED,
    }
    config = load_config_from_file(str(CLUSTER / f"{name}.yaml"))
    assert config.distributed_type == kinds[name]
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (2, 16, "bf16")
    assert config.main_process_port == 29500
    assert config.use_cpu is False


def test_every_configuration_is_tested():
    assert {path.name for path in CLUSTER.glob("*.yaml")} == {"ddp.yaml", "fsdp2.yaml", "deepspeed.yaml"}
    assert {path.name for path in CLUSTER.iterdir()} == {
        "README.md",
        "train.slurm",
        "ddp.yaml",
        "fsdp2.yaml",
        "deepspeed.yaml",
    }


def environment_of(name, *options):
    words = ("launch", "--config_file", str(CLUSTER / f"{name}.yaml"), "--main_process_ip", "a", "--machine_rank", "1")
    return accelerate_parsed([*words, *options, "train.py"])


def test_fsdp_is_version_2():
    """As the launched processes read it."""
    options, _, environment = environment_of("fsdp2")
    assert options.use_fsdp
    assert not (options.multi_gpu or options.use_deepspeed)
    with mock.patch.dict(os.environ, environment):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy", "the one that offloads nothing"


class TrainerConfig(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """transformers' own, which without DeepSpeed is installed has no base class."""

    def __init__(self, config):
        HfDeepSpeedConfig.__init__(self, config)
        self._dtype, self.mismatches = None, []


@pytest.mark.parametrize("stage", [None, 1, 3])
@pytest.mark.parametrize("bf16", [True, False])
def test_deepspeed_agrees_with_trainer(tmp_path, stage, bf16):
    """The configuration that the processes make of the environment, filled in by Trainer: only without --bf16 they differ."""
    options, _, environment = environment_of("deepspeed", *(() if stage is None else ("--zero_stage", str(stage))))
    assert options.use_deepspeed
    with mock.patch.dict(os.environ, environment):
        plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    del plugin.deepspeed_config["steps_per_print"]
    config = TrainerConfig(plugin.deepspeed_config)
    config.trainer_config_process(
        TrainingArguments(str(tmp_path), bf16=bf16, use_cpu=True, max_grad_norm=0.5, gradient_accumulation_steps=3)
    )
    assert config.get_value("zero_optimization.stage") == (stage or 2)
    assert config.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save") is True
    assert config.get_value("gradient_clipping") == 0.5
    assert config.get_value("gradient_accumulation_steps") == 3
    assert config.get_value("bf16.enabled") is True
    assert config.mismatches == ([] if bf16 else ["- ds bf16.enabled=True vs hf bf16|bf16_full_eval=False"])


# --- the README's commands ---


def test_blocks_are_all_bash():
    assert [language for language, _ in BLOCKS] == ["bash"] * 6
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("node", [0, 1])
def test_every_command_is_parsed_by_its_launcher(stubs, node, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    refined = configurations = 0
    for command, arguments in launches_of_readme(stubs, node):
        if command == "torchrun":
            told = torch.distributed.run.parse_args(arguments)
            head, port, module = "node0", 29500, told.module
        else:
            options, told, environment = accelerate_parsed(arguments)
            under_slurm = "--resume_from_checkpoint" in arguments
            head, port = ("gpu07", 21234) if under_slurm else ("node0", 29500)
            module = options.module
            assert (options.num_processes, options.num_machines, options.machine_rank) == (16, 2, node)
            assert (options.main_process_ip, options.main_process_port) == (head, port)
            assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
            configurations += Path(options.config_file).name != "ddp.yaml"
            if options.config_file.endswith("ddp.yaml"):
                assert options.multi_gpu
        # What torch's launcher makes of it
        launch, _, _ = torch.distributed.run.config_from_args(told)
        assert (launch.min_nodes, launch.max_nodes, launch.nproc_per_node) == (2, 2, 8)
        assert launch.rdzv_backend == "static"
        assert launch.rdzv_configs["rank"] == node
        assert launch.rdzv_endpoint.split(":")[0] == head
        if command == "torchrun":
            assert launch.rdzv_endpoint == f"{head}:{port}"
        training = check_script(module, told.training_script, told.training_script_args)
        if training is not None:
            assert training.bf16
            refined += training.lr_scheduler_type == "refined"
    assert refined == 5
    assert configurations == 1


def test_files_that_the_readme_names_are_there():
    named = re.findall(r"scripts/[\w./]+\w", README) + [
        f"scripts/cluster/{name}" for name in ("ddp.yaml", "fsdp2.yaml")
    ]
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []
    assert [name for name in re.findall(r"\]\(([^)]+)\)", README) if not (CLUSTER / name).is_file()] == []
    assert [name for name in re.findall(r"`(\w+\.(?:yaml|slurm))`", README) if not (CLUSTER / name).is_file()] == []


# --- SLURM ---


def submit(environment, *words, **more):
    Path(environment["RECORD"]).unlink(missing_ok=True)
    return subprocess.run(
        [Path(environment["PATH"]) / "sbatch", SLURM_SCRIPT, *words],
        env={**environment, **more}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_slurm_script_is_bash_for_sbatch():
    assert subprocess.run(["bash", "-n", SLURM_SCRIPT], capture_output=True).returncode == 0
    text = SLURM_SCRIPT.read_text()
    options = re.findall(r"^#SBATCH (\S+)$", text, re.M)
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue"} <= set(options)
    assert text.rindex("#SBATCH --") < text.index("set -euo"), "sbatch stops reading at the first command"


def test_slurm_starts_one_launch_a_node(stubs):
    """What differs between the nodes is the rank alone; words with spaces and quotes stay whole."""
    words = ["--output_dir", "runs/a b", "--lr_scheduler_kwargs", '{"refined_from": "it\'s $HOME"}']
    done = submit(stubs, *words)
    assert done.returncode == 0, done.stderr
    (srun,) = [arguments for command, arguments, _ in recorded(stubs) if command == "srun"]
    assert srun[0] == "--kill-on-bad-exit=1"
    launches = {node: arguments for command, arguments, node in recorded(stubs) if command == "accelerate"}
    assert set(launches) == {"0", "1"}
    parsed = [launch_command_parser().parse_args(launches[node][1:]) for node in ("0", "1")]
    assert [options.machine_rank for options in parsed] == [0, 1]
    for options in parsed:
        options.machine_rank = None
        assert options.training_script == "scripts/run_clm.py"
        assert options.training_script_args == [*words, "--resume_from_checkpoint", "True"]
        assert (options.main_process_ip, options.main_process_port) == ("gpu07", 21234)
    assert vars(parsed[0]) == vars(parsed[1])


def test_slurm_reports_a_failed_launch(stubs):
    assert submit(stubs, SRUN_STATUS="3").returncode == 3


def test_slurm_requeues_at_the_time_limit(stubs):
    """At once, not when training has ended."""
    job = subprocess.Popen(
        [Path(stubs["PATH"]) / "sbatch", SLURM_SCRIPT], env={**stubs, "SRUN_SECONDS": "3"}, stderr=subprocess.PIPE
    )
    wait_for(stubs, "srun")
    job.send_signal(signal.SIGUSR1)
    calls = wait_for(stubs, "requeue")
    job.communicate(timeout=60)
    assert calls[-1] == ["scontrol", ["requeue", "31234"], None]
    assert "accelerate" not in [command for command, *_ in calls]


def wait_for(environment, word):
    """The calls of stubs up to the first that has this word in it."""
    for _ in range(200):
        text = Path(environment["RECORD"]).read_text() if Path(environment["RECORD"]).exists() else ""
        if word in text:
            break
        time.sleep(0.05)
    return recorded(environment)


# --- two nodes on this machine ---

SHORT = (
    "--max_steps", "5", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--report_to", "none", "--use_cpu",
    "--save_strategy", "no", "--dataloader_pin_memory", "false", "--disable_tqdm", "true",
)  # fmt: skip
NORMS = [*range(20, 10, -1), *[10] * 10]


@pytest.fixture
def nodes(tmp_path):
    """The folders of two nodes that share no files. An earlier run lies on the first alone, twice."""
    for source in ("runs/linear", "runs/baseline"):
        (tmp_path / "node0" / source).mkdir(parents=True)
        header = {"format": "gradient_norms", "version": 1, "optimizer": "AdamW", "optimizer_family": "adam"}
        rows = [{"step": step, "l1": l1, "l2": 1.0} for step, l1 in enumerate(NORMS, start=1)]
        lines = [json.dumps(line) + "\n" for line in [{**header, "num_training_steps": len(rows)}, *rows]]
        (tmp_path / "node0" / source / "gradient_norms.jsonl").write_text("".join(lines))
    (tmp_path / "node1" / "runs").mkdir(parents=True)
    return [tmp_path / "node0", tmp_path / "node1"]


def on_both_nodes(nodes, launch, *overrides, script_options):
    """Run one of the README's launches on both nodes at once, each of one process."""
    command, arguments = launch
    port = free_port()

    def run(node):
        words = [f"{REPOSITORY}/{word}" if word.startswith("scripts/") else word for word in arguments]
        rank = {"accelerate": "--machine_rank", "torchrun": "--node_rank"}[command]
        words[words.index(rank) + 1] = str(node)
        # The last of an option's values counts; the script's own options begin at its name.
        name = next(position for position, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        words[name:name] = [str(word).format(port=port) for word in overrides]
        words += script_options
        return run_command(BIN / command, *words, folder=nodes[node], timeout=90, ACCELERATE_USE_CPU="true")

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def check_refined(nodes, output_dir, done):
    """A refined run of both nodes, recorded on the first, from a run that lies there alone."""
    file = nodes[0] / output_dir / "gradient_norms.jsonl"
    assert file.is_file(), done[0].stderr
    header, rows = read_rows(file)
    assert (header["world_size"], header["num_training_steps"], len(rows)) == (2, 5, 5)
    rates = [row["learning_rate"] for row in rows]
    assert rates != sorted(rates, reverse=True), "as linear decay"
    assert not list(nodes[1].rglob("gradient_norms*"))


def test_a_trainer_script_trains_on_two_nodes(stubs, nodes):
    bpe = ByteLevelBPETokenizer()
    text = builtin_documents("english")[:20]
    bpe.train_from_iterator(text, 300, special_tokens=["<end>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<end>", eos_token="<end>")
    part = Dataset.from_dict({"text": text})
    for node in nodes:  # what the command names lies here, so that nothing is downloaded
        tokenizer.save_pretrained(node / "gpt2")
        tiny_model(vocab_size=len(tokenizer)).save_pretrained(node / "gpt2")
        DatasetDict(train=part, validation=part.select(range(2))).save_to_disk(node / "wikitext")
    launch = launches_of_readme(stubs, 0)[1]
    assert launch[0] == "accelerate"
    assert "runs/linear" in launch[1]
    overrides = ("--num_processes", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", "{port}")
    done = on_both_nodes(nodes, launch, *overrides, script_options=(*SHORT, "--max_eval_samples", "4"))
    check_refined(nodes, "runs/refined", done)


def test_an_unmodified_script_trains_on_two_nodes(stubs, nodes):
    for node in nodes:
        shutil.copy(SCRIPTS / "unmodified_trainer.py", node / "train.py")
        shutil.copy(SCRIPTS / "beside_the_script.py", node)
    (launch,) = [
        launch for launch in launches_of_readme(stubs, 0) if launch[0] == "torchrun" and "--refined-from" in launch[1]
    ]
    overrides = ("--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", "{port}")
    done = on_both_nodes(nodes, launch, *overrides, script_options=SHORT)
    check_refined(nodes, "runs/refined", done)
    reports = [(nodes[rank] / "runs" / "refined" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert reports[0] == reports[1]

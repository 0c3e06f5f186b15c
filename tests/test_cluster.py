"""scripts/cluster: accelerate reads its configurations, and the launchers parse its commands.

Every bash block of its README runs with stubs of `accelerate`, `torchrun` and SLURM in an otherwise empty PATH. The stubs
record their arguments. Two of the commands then train, as two nodes of one process on this machine.
"""

import json
import os
import re
import shlex
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
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from datasets import Dataset, DatasetDict
from experiments.builtin_text import builtin_documents
from experiments.language_modeling import END_OF_TEXT, DataArguments, ModelArguments, train_byte_level_bpe
from transformers import HfArgumentParser, PreTrainedTokenizerFast, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from hf_refined_schedule import RefinedScheduleArguments
from hf_refined_schedule.cli import _parser

from .tiny import BIN, REPOSITORY, SCRIPTS, free_port, read_rows, run_command, tiny_model
from .tolerances import LAUNCH_SECONDS, STUB_SECONDS

CLUSTER = REPOSITORY / "scripts" / "cluster"
README = (CLUSTER / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
SLURM_SCRIPT = CLUSTER / "train.slurm"


@pytest.fixture
def stubs(tmp_path):
    """The environment of a node where only the stubs are installed."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    (folder / "bash").symlink_to(shutil.which("bash"))
    for name in ("accelerate", "torchrun", "sbatch", "srun", "scontrol"):
        words = (sys.executable, SCRIPTS / "cluster_stub.py", name)
        (folder / name).write_text(f'#!{folder / "bash"}\nexec {shlex.join(map(str, words))} "$@"\n')
        (folder / name).chmod(0o755)
    (folder / "env").symlink_to(shutil.which("env"))
    return {"PATH": str(folder), "RECORD": str(tmp_path / "record")}


def recorded(environment):
    """(command, arguments, SLURM_NODEID) of every call of a stub."""
    return [json.loads(line) for line in Path(environment["RECORD"]).read_text().splitlines()]


def launches_of_readme(environment, node):
    """Run all bash blocks of the README as on one node; returns the launches that they start, in order."""
    Path(environment["RECORD"]).unlink(missing_ok=True)
    code = "".join(code for _, code in BLOCKS)
    assert code.count("NODE=0") == 1
    code = code.replace("NODE=0", f"NODE={node}")
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", code],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=STUB_SECONDS,
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
    assert len(launches) == len(begun) - begun.count("export")  # each sbatch starts one launch on this node
    assert [command for command, *_ in calls].count("sbatch") == begun.count("sbatch") >= 2
    return launches


def run_accelerate_launch(arguments):
    """Run `accelerate ARGUMENTS` up to torch's launcher.

    Returns accelerate's options, those that it passes to torch's launcher, and the environment of the processes.
    """
    assert arguments[0] == "launch"
    options = launch_command_parser().parse_args(arguments[1:])
    launches = []
    with (
        mock.patch.dict(os.environ),
        mock.patch("torch.distributed.run.run", lambda torchrun: launches.append((torchrun, dict(os.environ)))),
        mock.patch("accelerate.utils.launch.is_port_in_use", return_value=False),
    ):
        launch_command(options)
    ((torchrun, environment),) = launches
    return options, torchrun, environment


def deepspeed_environment(arguments):
    """The environment of the processes that `accelerate ARGUMENTS` starts with DeepSpeed, which need not be installed."""
    with mock.patch("accelerate.commands.launch.deepspeed_launcher") as launcher, mock.patch.dict(os.environ):
        launch_command(launch_command_parser().parse_args(arguments[1:]))
        (options,) = launcher.call_args.args
        options.main_process_port = free_port()  # accelerate refuses a port that is in use
        command, environment = prepare_deepspeed_cmd_env(options)
    assert command is None, "DeepSpeed's launcher would start both nodes from the first"
    return environment


def check_script(module, script, arguments):
    """Parse the arguments of the launched script as it would; returns its training arguments, if it has any."""
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


def launch_of(name, *options):
    """`accelerate launch` of the second node with a configuration of this folder."""
    words = ("launch", "--config_file", str(CLUSTER / f"{name}.yaml"), "--main_process_ip", "a", "--machine_rank", "1")
    return [*words, *options, "train.py"]


def test_fsdp_is_version_2():
    """In the plugin that the launched processes build."""
    options, _, environment = run_accelerate_launch(launch_of("fsdp2"))
    assert options.use_fsdp
    assert not (options.multi_gpu or options.use_deepspeed)
    with mock.patch.dict(os.environ, environment):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy", "the policy that offloads nothing"


class TrainerConfig(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """The configuration of transformers, which has no base class where DeepSpeed is not installed."""

    def __init__(self, config):
        HfDeepSpeedConfig.__init__(self, config)
        self._dtype, self.mismatches = None, []


@pytest.mark.parametrize("stage", [None, 1, 3])
@pytest.mark.parametrize("bf16", [True, False])
def test_deepspeed_agrees_with_trainer(tmp_path, stage, bf16):
    """Trainer fills in the configuration that the processes read from the environment. The two differ only without --bf16."""
    stage_options = () if stage is None else ("--zero_stage", str(stage))
    environment = deepspeed_environment(launch_of("deepspeed", *stage_options))
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
            torchrun = torch.distributed.run.parse_args(arguments)
            head, port, module = "node0", 29500, torchrun.module
        else:
            options, torchrun, environment = run_accelerate_launch(arguments)
            under_slurm = "--resume_from_checkpoint" in arguments
            head, port = ("gpu07", 21234) if under_slurm else ("node0", 29500)
            module = options.module
            assert (options.num_processes, options.num_machines, options.machine_rank) == (16, 2, node)
            assert (options.main_process_ip, options.main_process_port) == (head, port)
            assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
            configurations += Path(options.config_file).name != "ddp.yaml"
            if options.config_file.endswith("ddp.yaml"):
                assert options.multi_gpu
        launch, _, _ = torch.distributed.run.config_from_args(torchrun)
        assert (launch.min_nodes, launch.max_nodes, launch.nproc_per_node) == (2, 2, 8)
        assert launch.rdzv_backend == "static"
        assert launch.rdzv_configs["rank"] == node
        assert launch.rdzv_endpoint == f"{head}:{port}"
        training = check_script(module, torchrun.training_script, torchrun.training_script_args)
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
        env={**environment, **more}, capture_output=True, text=True, timeout=STUB_SECONDS,
    )  # fmt: skip


def test_slurm_script_is_bash_for_sbatch():
    assert subprocess.run(["bash", "-n", SLURM_SCRIPT], capture_output=True).returncode == 0
    text = SLURM_SCRIPT.read_text()
    options = re.findall(r"^#SBATCH (\S+)$", text, re.M)
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue"} <= set(options)
    assert text.rindex("#SBATCH --") < text.index("set -euo"), "sbatch stops reading at the first command"


def test_slurm_starts_one_launch_a_node(stubs):
    """The launches differ in the rank of the node only; words with spaces and quotes stay whole."""
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
    """Immediately, not after training."""
    job = subprocess.Popen(
        [Path(stubs["PATH"]) / "sbatch", SLURM_SCRIPT], env={**stubs, "SRUN_SECONDS": "3"}, stderr=subprocess.PIPE
    )
    wait_for(stubs, "srun")
    job.send_signal(signal.SIGUSR1)
    calls = wait_for(stubs, "requeue")
    job.communicate(timeout=STUB_SECONDS)
    assert calls[-1] == ["scontrol", ["requeue", "31234"], None]
    assert "accelerate" not in [command for command, *_ in calls]


def wait_for(environment, word):
    """Wait until a call of a stub has this word; returns all calls."""
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
    """The folders of two nodes that share no files. Only the first has an earlier run, under two names."""
    for source in ("runs/linear", "runs/baseline"):
        (tmp_path / "node0" / source).mkdir(parents=True)
        header = {"format": "gradient_norms", "version": 1, "optimizer": "AdamW", "optimizer_family": "adam"}
        rows = [{"step": step, "l1": l1, "l2": 1.0} for step, l1 in enumerate(NORMS, start=1)]
        lines = [json.dumps(line) + "\n" for line in [{**header, "num_training_steps": len(rows)}, *rows]]
        (tmp_path / "node0" / source / "gradient_norms.jsonl").write_text("".join(lines))
    (tmp_path / "node1" / "runs").mkdir(parents=True)
    return [tmp_path / "node0", tmp_path / "node1"]


def on_both_nodes(nodes, launch, *overrides, script_options):
    """Run a launch of the README on both nodes at once, with one process each."""
    command, arguments = launch
    port = free_port()

    def run(node):
        words = [f"{REPOSITORY}/{word}" if word.startswith("scripts/") else word for word in arguments]
        rank = {"accelerate": "--machine_rank", "torchrun": "--node_rank"}[command]
        words[words.index(rank) + 1] = str(node)
        # The last value of an option counts. The options of the script follow its name.
        name = next(position for position, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        words[name:name] = [str(word).format(port=port) for word in overrides]
        words += script_options
        return run_command(BIN / command, *words, folder=nodes[node], timeout=LAUNCH_SECONDS, ACCELERATE_USE_CPU="true")

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def check_refined(nodes, output_dir, done):
    """Both nodes trained a refined run, which is recorded on the first, from a run that only the first has."""
    file = nodes[0] / output_dir / "gradient_norms.jsonl"
    assert file.is_file(), done[0].stderr
    header, rows = read_rows(file)
    assert (header["world_size"], header["num_training_steps"], len(rows)) == (2, 5, 5)
    rates = [row["learning_rate"] for row in rows]
    assert rates != sorted(rates, reverse=True), "the rates are those of linear decay"
    assert not list(nodes[1].rglob("gradient_norms*"))


def test_a_trainer_script_trains_on_two_nodes(stubs, nodes):
    text = builtin_documents("english")[:20]
    bpe = train_byte_level_bpe(text, 300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    part = Dataset.from_dict({"text": text})
    for node in nodes:  # the model and the dataset of the command are local, so that nothing is downloaded
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

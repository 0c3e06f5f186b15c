"""The schedule on every rank: ranks that ask alone, nodes without a shared disk, and errors that reach all."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hf_refined_schedule.theory import refinement
from hf_refined_schedule.training.rank_zero import on_main_process

from .records import norms_of, refined, write_norms
from .tiny import BIN, SCRIPTS, free_port, run_command, torchrun

ALONE = SCRIPTS / "one_rank_alone.py"


def expected(norms):
    grid = refined(norms_of(norms)).grid
    return [refinement.multiplier_at(grid, step / 20) for step in range(20)]


def test_a_main_process_that_asks_alone_leaves_nobody_waiting(tmp_path):
    """A preview on rank 0 takes no turn of the others; a source that has changed between two asks of all is read anew."""
    norms, others, third = np.linspace(3, 1, 200), np.linspace(1, 2, 200), np.linspace(5, 1, 200)
    write_norms(tmp_path / "run.jsonl", norms.tolist())
    write_norms(tmp_path / "other.jsonl", others.tolist())
    write_norms(tmp_path / "third.jsonl", third.tolist())
    done = torchrun(ALONE, tmp_path / "run.jsonl", "--other", tmp_path / "other.jsonl", "--report", tmp_path)
    assert (tmp_path / "rank1.json").exists(), done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    preview = ranks[0].pop("preview")
    assert ranks[0] == ranks[1]
    assert ranks[0]["world_size"] == 2
    assert ranks[0]["together"] == pytest.approx(expected(norms))
    assert ranks[0]["replaced"] == pytest.approx(expected(others))
    assert ranks[0]["replaced after a preview"] == pytest.approx(expected(third))
    assert len(set(ranks[0]["two at once"])) == 1
    assert ranks[0]["checkpoint"] == "checkpoint-20"
    assert preview == ranks[0]["after the preview"] == ranks[0]["once more"] == ranks[0]["replaced"]


def test_another_process_that_asks_alone_is_told_so(tmp_path):
    write_norms(tmp_path / "run.jsonl", [1.0] * 50)
    done = torchrun(ALONE, tmp_path / "run.jsonl", "--second-rank-alone")
    assert done.returncode not in (None, 0)
    assert "Rank 1 waits for the main process to give it the schedule refined from" in done.stderr
    assert "TimeoutError: Rank 1 has waited 4 s for the main process" in done.stderr
    assert "ended after" not in done.stderr


def test_an_error_that_cannot_be_sent_is_an_error_here(monkeypatch):
    """In one process the error stays itself."""
    error = ValueError("no")
    error.lock = threading.Lock()

    def fail():
        raise error

    assert on_main_process(fail, "nothing").error is error


def test_two_nodes_without_a_shared_disk(tmp_path):
    """The run lies on node 0 alone; each node has a folder of its own, and `refined_from` is a relative path."""
    port, options = (
        free_port(),
        ("--max_steps", 12, "--logging_steps", 1, "--report_to", "none", "--save_strategy", "no"),
    )
    nodes = [tmp_path / f"node{rank}" for rank in range(2)]
    for node in nodes:
        node.mkdir()
    norms = np.linspace(3, 1, 12)
    write_norms(nodes[0] / "baseline" / "gradient_norms.jsonl", norms.tolist())

    def launch(rank):
        return run_command(
            BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 2, "--machine_rank", rank,
            "--main_process_ip", "127.0.0.1", "--main_process_port", port, "--mixed_precision", "no", "--dynamo_backend", "no",
            "-m", "hf_refined_schedule", "launch", "--refined-from", "baseline", SCRIPTS / "unmodified_trainer.py", "--output_dir", "out",
            "--per_device_train_batch_size", 2, *options, "--use_cpu", "--dataloader_pin_memory", "false", "--disable_tqdm", "true",
            "--lr_scheduler_type", "refined", "--learning_rate", 1.0,
            folder=nodes[rank], timeout=90, ACCELERATE_USE_CPU="true",
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(launch, range(2)))
    grid = refined(norms_of(norms)).grid
    for rank, node in enumerate(nodes):
        world_size, rates = (node / "out" / f"rank{rank}.txt").read_text().split(" ", 1)
        assert int(world_size) == 2, done[rank].stderr
        assert json.loads(rates)[:12] == pytest.approx(grid[:12].tolist())
    assert (nodes[0] / "out" / "gradient_norms.jsonl").exists()
    assert not (nodes[1] / "out" / "gradient_norms.jsonl").exists()

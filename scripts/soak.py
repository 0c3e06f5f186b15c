"""Kill training at random moments, resume it, and compare with a run that nobody killed.

    python scripts/soak.py --trials 100 --trials_of_two 20

Every trial trains a tiny model with a refined schedule and recording on, and is killed with SIGKILL one to three times: at a
random moment, while a checkpoint is being written, in the middle of a line of gradient_norms.jsonl, or just before that file is
replaced by one that is cut back. It resumes from the checkpoint that `last_complete_checkpoint` finds, or starts anew where there
is none yet. In the end the norms file, the learning rates and the weights have to be those of the uninterrupted run, to the last
bit, dropout included: on a CPU the same arithmetic in the same order gives the same numbers. With two processes (gloo) one rank
is killed, and the other is ended as a launcher would, up to 0.3 s later: it may write on meanwhile.

Writes results/soak.md and prints it. A trial that differs is kept in its folder, and the exit status is 1.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no threads to share
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import random
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from hf_refined_schedule import RefinedScheduleArguments, RefinedScheduleTrainer
from hf_refined_schedule.norms.norms_file import FORMAT, NORMS_FILE_NAME, VERSION, NormsFileWriter
from hf_refined_schedule.training.checkpoints import last_complete_checkpoint

STEPS, SAVE_STEPS = 40, 4

MOMENTS = (
    "at a random moment",
    "while a checkpoint was being written",
    "in the middle of a line of the norms file",
    "before the norms file was replaced",
)

TIME_LIMIT = 60.0
"""Seconds for one attempt; gloo may hang at exit after a good run."""

FINISHED = "finished"
"""A file that each rank leaves when it has saved everything."""


def train(folder: Path, source: Path, resume: bool) -> None:
    """One attempt, to its end."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0,
        loss_type="ForCausalLM",
    )  # fmt: skip
    tokens = torch.randint(0, 64, (256, 16), generator=torch.Generator().manual_seed(1))
    arguments = RefinedScheduleArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="refined",
        refined_from=str(source),
        logging_steps=1,
        save_steps=SAVE_STEPS,
        save_total_limit=3,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = RefinedScheduleTrainer(
        GPT2LMHeadModel(config), arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens]
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder) if resume else None)
    trainer.save_model(str(folder / "final"))
    # Resumed from its last checkpoint, a Trainer makes one update more than it was told, with a learning rate of 0.
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry][:STEPS]
    rank = arguments.process_index
    (folder / f"rates.{rank}.json").write_text(json.dumps(rates))
    (folder / f"{FINISHED}.{rank}").touch()


def torn_in_a_line(at_append: int) -> None:
    """Make this process die while it appends to its norms file for the so manieth time."""
    append, calls = NormsFileWriter.append, Counter[str]()

    def torn(self: NormsFileWriter, rows: object) -> None:
        calls["append"] += 1
        append(self, rows)
        if calls["append"] == at_append:
            with self.path.open("rb+") as file:  # as if the last line had not been written to its end
                file.truncate(self.path.stat().st_size - 30)
            os.kill(os.getpid(), signal.SIGKILL)

    NormsFileWriter.append = torn


def dies_before_replacing() -> None:
    """Make this process die when it has written its norms file anew, and not yet put it in the old one's place."""
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], None], log: Path) -> int:
    """Run `work` in a process of its own that has everything loaded already; its id."""
    process = os.fork()
    if process:
        return process
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # without the interpreter's own end, where gloo hangs now and then


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder: Path, source: Path, resume: bool, world_size: int, prepare: Callable[[], None]) -> list[int]:
    """Start an attempt; the ids of its ranks."""
    port = free_port()

    def rank(number: int) -> None:
        if world_size > 1:
            os.environ.update(
                RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
        if number == 0:
            prepare()
        train(folder, source, resume)

    return [forked(lambda number=number: rank(number), folder / "log.txt") for number in range(world_size)]


def is_running(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def end(processes: list[int], pause: float = 0.0) -> None:
    """Kill what still runs: the first process, and after so many seconds the others."""
    for number, process in enumerate(processes):
        if number == 1:
            time.sleep(pause)
        os.kill(process, signal.SIGKILL)
    for process in processes:
        os.waitpid(process, 0)


def is_finished(folder: Path, world_size: int) -> bool:
    """Whether all ranks have saved everything."""
    return all((folder / f"{FINISHED}.{rank}").exists() for rank in range(world_size))


def unfinished_checkpoint(folder: Path) -> bool:
    """Whether the newest checkpoint is being written."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return bool(checkpoints) and not (checkpoints[-1] / "trainer_state.json").exists()


def attempt(
    folder: Path, source: Path, resume: bool, world_size: int, kill: str | None, chance: random.Random, duration: float
) -> bool:
    """Train until the end, or until the kill.

    Args:
        folder: of the run.
        source: what the schedule is refined from.
        resume: from the newest complete checkpoint.
        world_size: processes.
        kill: one of `MOMENTS`, or None.
        chance: random numbers.
        duration: seconds that an uninterrupted run takes.

    Returns:
        Whether it got to its end.

    Raises:
        RuntimeError: if it ended by itself without getting there.
    """
    for mark in folder.glob(f"{FINISHED}.*"):  # of a rank that got to its end while another was killed
        mark.unlink()
    at_append = chance.randint(1, 6)
    prepare = {MOMENTS[2]: lambda: torn_in_a_line(at_append), MOMENTS[3]: dies_before_replacing}.get(kill, lambda: None)
    processes = start(folder, source, resume, world_size, prepare)
    started, moment = time.monotonic(), chance.uniform(0.05, duration)
    # The checkpoint that is hit, and how far it has got by then: writing one takes some 30 ms.
    waiting_for, delay = chance.randint(1, STEPS // SAVE_STEPS), chance.uniform(0, 0.03)
    seen: set[str] = set()
    try:
        while all(map(is_running, processes)) and time.monotonic() - started < TIME_LIMIT:
            if is_finished(folder, world_size):
                break
            if kill == MOMENTS[0] and time.monotonic() - started > moment:
                break
            if kill == MOMENTS[1] and unfinished_checkpoint(folder):
                seen.add(max(path.name for path in folder.glob("checkpoint-*")))
                if len(seen) >= waiting_for:
                    time.sleep(delay)
                    break
            time.sleep(0.001)
        finished = is_finished(folder, world_size)
        by_themselves = kill is None and not finished and not all(map(is_running, processes))
    finally:
        chance.shuffle(processes)
        end(processes, pause=0.0 if kill is None else chance.uniform(0, 0.3))
    if by_themselves or (kill is None and not finished):
        raise RuntimeError(f"a run without a kill did not get to its end; see {folder / 'log.txt'}")
    return finished


def differences(folder: Path, whole: Path, world_size: int) -> list[str]:
    """What of a run is not as in the uninterrupted one."""
    names = [NORMS_FILE_NAME, "final/model.safetensors", *(f"rates.{rank}.json" for rank in range(world_size))]
    return [name for name in names if (folder / name).read_bytes() != (whole / name).read_bytes()]


def trial(folder: Path, source: Path, whole: Path, world_size: int, chance: random.Random, duration: float) -> Counter:
    """Train with kills; what happened, counted."""
    counts: Counter[str] = Counter(trials=1)
    folder.mkdir()
    planned = chance.randint(1, 3)
    while counts["kills"] < planned:
        resume = counts["kills"] > 0
        if attempt(folder, source, resume, world_size, chance.choice(MOMENTS), chance, duration):
            if resume:
                break  # the moment came after the end
            shutil.rmtree(folder)
            folder.mkdir()
            continue
        norms = folder / NORMS_FILE_NAME
        counts["kills"] += 1
        counts["with a checkpoint half written"] += unfinished_checkpoint(folder)
        counts["with a line half written"] += norms.exists() and not norms.read_bytes().endswith(b"\n")
        counts["with the norms file half replaced"] += any(folder.glob(f".{NORMS_FILE_NAME}.*"))
        counts["before the first checkpoint"] += last_complete_checkpoint(folder) is None
    if not is_finished(folder, world_size):
        attempt(folder, source, True, world_size, None, chance, duration)
    for name in differences(folder, whole, world_size):
        kind = name.split(".")[0] if name.startswith("rates") else name
        counts[f"differing {kind}"] += 1
    return counts


COLUMNS = (
    "trials", "kills", "with a checkpoint half written", "with a line half written", "with the norms file half replaced",
    "before the first checkpoint", f"differing {NORMS_FILE_NAME}", "differing rates", "differing final/model.safetensors",
)  # fmt: skip


def soak(folder: Path, source: Path, world_size: int, num_trials: int, seed: int) -> Counter:
    """All trials with so many processes."""
    whole = folder / f"whole_{world_size}"
    whole.mkdir()
    chance = random.Random(seed)
    started = time.monotonic()
    attempt(whole, source, False, world_size, None, chance, 0.0)
    duration = time.monotonic() - started
    total: Counter[str] = Counter()
    for number in tqdm(range(num_trials), desc=f"{world_size} process{'es' * (world_size > 1)}", unit="trial"):
        one = folder / f"{world_size}_{number}"
        counts = trial(one, source, whole, world_size, random.Random(f"{seed} {world_size} {number}"), duration)
        total += counts
        if any(name.startswith("differing") for name in counts):
            tqdm.write(f"differs: {one}: {dict(counts)}")
        else:
            shutil.rmtree(one)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=100, help="with one process")
    parser.add_argument("--trials_of_two", type=int, default=20, help="with two processes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=Path("results/soak.md"))
    options = parser.parse_args()
    if min(options.trials, options.trials_of_two) < 0:
        parser.error("--trials and --trials_of_two must not be negative")
    transformers.utils.logging.set_verbosity_error()
    # Forked processes share tqdm's own lock: one may be killed while it holds it, and a second thread may hold it at a fork.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    started = time.monotonic()
    header = {"format": FORMAT, "version": VERSION, "optimizer_family": "adam", "num_training_steps": STEPS}
    source = folder / "source.jsonl"
    rows = [{"step": step, "l1": 1 + 3 * 0.8**step, "l2": 1.0} for step in range(1, STEPS + 1)]
    source.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
    plan = {1: options.trials, 2: options.trials_of_two}
    totals = {size: soak(folder, source, size, trials, options.seed) for size, trials in plan.items() if trials}
    table = [f"| processes | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    table += [f"| {size} | {' | '.join(str(total[name]) for name in COLUMNS)} |" for size, total in totals.items()]
    text = "\n".join(
        [
            "# Kills and resumes",
            "",
            f"Runs of {STEPS} updates, a checkpoint every {SAVE_STEPS}, killed with SIGKILL one to three times each and resumed from the newest",
            "complete checkpoint; the norms file, the learning rates and the final weights compared with the uninterrupted run's, bit by bit.",
            "",
            *table,
            "",
            f"```bash\n{shlex.join(['python', 'scripts/soak.py', *sys.argv[1:]])}\n```",
            "",
            f"- seed {options.seed}; {(time.monotonic() - started) / 60:.1f} minutes",
            "",
        ]
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(text)
    if any(total[name] for total in totals.values() for name in COLUMNS if name.startswith("differing")):
        print(f"What differs was kept in {folder}.", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted.")

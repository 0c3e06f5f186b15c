"""Broken inputs for every reader and command, and what counts as a fault of the package."""

import contextlib
import io
import json
import random
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from hf_refined_schedule import extend_run, get_refined_schedule, load_losses, load_norms
from hf_refined_schedule.cli import main as run_command
from hf_refined_schedule.norms.gradient_norms import UnfinishedRunError
from hf_refined_schedule.norms.message_text import shown
from hf_refined_schedule.schedules.refinement_options import RefinementOptions
from hf_refined_schedule.schedules.refining import refine_sources
from hf_refined_schedule.schedules.schedule_file import read_schedule
from hf_refined_schedule.training.checkpoints import last_complete_checkpoint

LONGEST_MESSAGE = 300
"""Characters of an error message."""

LONGEST_SECONDS = 2.0
"""Processor time for one call on one input."""

MOST_MEGABYTES = 300
"""Memory for one call on one input, above what the process had reached before."""

COMMANDS_THAT_AGREE = ("check", "refine", "rank")
"""An input that one of these accepts is accepted by the others. An unfinished run is an exception: `check` takes it as a pilot."""

STEPS = 60


class Seed(NamedTuple):
    """A valid input: its kind, the name of its file, and its content."""

    kind: str
    file: str
    content: bytes


COMMAND_OPTIONS = [
    ["--optimizer", "sgd"], ["--norm", "l1"], ["--norm", "l2"], ["--column", "grad_norm"], ["--column", "loss"],
    ["--column", "$x_{\x1b[31m"], ["--power", "-0.5"], ["--power", "-40"], ["--smoothing", "0"], ["--smoothing", "1"],
    ["--rising-norms", "ignore"], ["--pilot"], ["--num-training-steps", "60"], ["--num-training-steps", "1000000"],
    ["--num-training-steps", "1000000000000"],
]  # fmt: skip
"""Options of the commands that refine a schedule."""


class Fault(NamedTuple):
    """Behaviour that no input may cause."""

    kind: str
    call: str
    what: str
    content: bytes


def valid_inputs(folder: Path) -> list[Seed]:
    """Make a valid input of every kind.

    Args:
        folder: an empty folder to work in.

    Returns:
        The inputs.
    """
    norms = [3.0 - step / 30 + 0.1 * (step % 3) for step in range(STEPS)]
    header = {"format": "gradient_norms", "version": 1, "optimizer_family": "adam", "num_training_steps": STEPS}
    rows = [
        {"step": step, "l1": 100 * norm, "l2": norm, "clip_factor": 1.0, "learning_rate": 0.1}
        for step, norm in enumerate(norms, 1)
    ]
    log = [{"step": step, "epoch": step / 10, "loss": 2.0, "grad_norm": norm} for step, norm in enumerate(norms, 1)]
    losses = [{"step": step, "loss": 2 + 1 / step, "learning_rate": norm} for step, norm in enumerate(norms, 1)]
    columns = {"step": [row["step"] for row in log], "grad_norm": [row["grad_norm"] for row in log]}
    exported = '"Step","a run - train/grad_norm","a run - train/grad_norm__MIN"\n'
    exported += "".join(f'"{row["step"]}","{row["grad_norm"]}","0"\n' for row in log)
    console = "".join(f"INFO {row}\n 10%|#         | {row['step']}/60 [00:01<00:09]\n" for row in log)
    texts = {
        ("norms file", "gradient_norms.jsonl"): "".join(json.dumps(row) + "\n" for row in [header, *rows]),
        ("trainer state", "trainer_state.json"): json.dumps({"max_steps": STEPS, "log_history": log}, indent=2),
        ("json lines", "log.jsonl"): "".join(json.dumps(row) + "\n" for row in log),
        ("column-wise json", "log.json"): json.dumps(columns),
        ("csv", "log.csv"): "step,grad_norm\n" + "".join(f"{row['step']},{row['grad_norm']}\n" for row in log),
        ("w&b export", "wandb.csv"): exported,
        ("console output", "train.log"): console,
        ("losses", "losses.jsonl"): "".join(json.dumps(row) + "\n" for row in losses),
    }
    seeds = [Seed(kind, file, text.encode()) for (kind, file), text in texts.items()]
    events = folder / "events.out.tfevents.1.host"
    with events.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(file_version="brain.Event:2").SerializeToString())
        for row in log:
            value = Summary.Value(tag="train/grad_norm", simple_value=row["grad_norm"])
            writer.write(Event(step=int(row["step"]), summary=Summary(value=[value])).SerializeToString())
    seeds.append(Seed("tensorboard", events.name, events.read_bytes()))
    recorded = folder / "gradient_norms.jsonl"
    recorded.write_bytes(seeds[0].content)
    silent(lambda: run_command(["refine", str(recorded), "-o", str(folder / "schedule.json")]))
    seeds.append(Seed("schedule file", "schedule.json", (folder / "schedule.json").read_bytes()))
    save_file({"weight": torch.ones(8)}, folder / "model.safetensors")
    seeds.append(Seed("checkpoint weights", "model.safetensors", (folder / "model.safetensors").read_bytes()))
    torch.save({"base_lrs": [1.0], "_last_lr": [0.5], "last_epoch": 5}, folder / "scheduler.pt")
    seeds.append(Seed("checkpoint scheduler", "scheduler.pt", (folder / "scheduler.pt").read_bytes()))
    state = {"global_step": 5, "log_history": log, "max_steps": STEPS}
    seeds.append(Seed("checkpoint state", "trainer_state.json", json.dumps(state).encode()))
    options = {"refined_from": "runs", "smoothing": 0.1, "norm": "l1", "power": -1, "pilot": True}
    seeds.append(Seed("scheduler options", "options.json", json.dumps(options).encode()))
    return seeds


NUMBERS = [
    b"NaN", b"Infinity", b"-1", b"0", b"1e400", b"5e-324", b"1e308", b"50000000", b"1000000000000", b"-0.0", b"null", b"true",
    b'"text"', b"[]", b"{}", b"9" * 400, b"1_0", b"0x10", b"\xd9\xa1",
]  # fmt: skip

INSERTIONS = [
    b"\x00", b"\x1b[31m", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b",", b'"', b"{", b"[" * 5000, b"\xe2\x80\xae", b"$x_{",
    b"A" * 20_000, b"\\ud800", b"'", b";", b"\t",
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
]  # fmt: skip


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Break an input in one to four ways.

    Args:
        content: a valid input.
        chance: the source of randomness.

    Returns:
        The broken input.
    """
    for _ in range(chance.randint(1, 4)):
        content = chance.choice(MUTATIONS)(content, chance)
    return content


def choose_options(chance: random.Random) -> list[str]:
    """Choose options of a command: none for half of the inputs, otherwise one or two.

    Args:
        chance: the source of randomness.

    Returns:
        The words of the command line.
    """
    chosen = chance.sample(COMMAND_OPTIONS, chance.choice([0, 0, 1, 2]))
    return [word for option in chosen for word in option]


def _flip_bits(content: bytes, chance: random.Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(chance.randint(1, 8) if flipped else 0):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randint(0, len(content))]


def _insert(content: bytes, chance: random.Random) -> bytes:
    position = chance.randint(0, len(content))
    return content[:position] + chance.choice(INSERTIONS) + content[position:]


def _change_lines(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    kind = chance.randrange(4)
    if kind == 0:
        chance.shuffle(lines)
    elif kind == 1:
        del lines[chance.randrange(len(lines))]
    elif kind == 2:
        lines.insert(chance.randint(0, len(lines)), chance.choice(lines))
    else:
        lines += lines[chance.randrange(len(lines)) :]
    return b"".join(lines)


def _replace_number(content: bytes, chance: random.Random) -> bytes:
    positions = [place for place in range(len(content)) if content[place : place + 1].isdigit()]
    if not positions:
        return content
    start = end = chance.choice(positions)
    while end < len(content) and content[end : end + 1] in b"0123456789.eE-":
        end += 1
    return content[:start] + chance.choice(NUMBERS) + content[end:]


def _recode(content: bytes, chance: random.Random) -> bytes:
    return content.decode("latin-1").encode(chance.choice(["utf-16", "utf-8-sig", "utf-32"]))


MUTATIONS = [_flip_bits, _truncate, _insert, _change_lines, _replace_number, _replace_number, _recode]


def silent(call: Callable[[], object]) -> tuple[object, str]:
    """Call a function and return its result with what it printed.

    Args:
        call: the function.

    Returns:
        The result, and standard output and error.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        return call(), printed.getvalue()


def calls_on(kind: str, path: Path, options: Sequence[str] = ()) -> dict[str, Callable[[], object]]:
    """The calls of the package to try on an input.

    Args:
        kind: the kind of the valid input that was broken.
        path: the broken input.
        options: words to add to each command.

    Returns:
        Functions by name.
    """
    if kind == "checkpoint scheduler":
        return {"extend_run": lambda: extend_run(path.parent, 40)}
    if kind.startswith("checkpoint"):
        return {"last_complete_checkpoint": lambda: last_complete_checkpoint(path.parent.parent)}
    if kind == "scheduler options":
        return {"from_keywords": lambda: RefinementOptions.from_keywords(_json_object(path))}
    source = str(path)
    calls: dict[str, Callable[[], object]] = {
        "load_norms": lambda: load_norms(source),
        "load_losses": lambda: load_losses(source),
        "check": lambda: _command(["check", source, *options]),
        "refine": lambda: _refine(path, options),
        "rank": lambda: _command(["rank", source, *options]),
        "plot": lambda: _command(["plot", source, "--text", *options]),
        "get_refined_schedule": lambda: _first_step(source),
    }
    if kind == "schedule file":
        calls["read_schedule"] = lambda: _valid_grid(read_schedule(source).grid)
    return calls


def find_faults(seed: Seed, content: bytes, folder: Path, options: Sequence[str] = ()) -> tuple[list[Fault], bool]:
    """Try every call on a broken input.

    Args:
        seed: the valid input that was broken.
        content: the broken input.
        folder: an empty folder to work in.
        options: words to add to each command.

    Returns:
        The faults, and whether any call accepted the input.
    """
    path = folder / seed.file
    if seed.kind.startswith("checkpoint"):
        path = folder / "checkpoint-5" / seed.file
        path.parent.mkdir()
        save_file({"weight": torch.ones(8)}, path.parent / "model.safetensors")
        (path.parent / "trainer_state.json").write_text('{"global_step": 5}')
    path.write_bytes(content)
    messages: dict[str, str] = {}
    accepted: dict[str, bool] = {}
    for name, call in calls_on(seed.kind, path, options).items():
        accepted[name], message = _try(call)
        if message is not None:
            messages[name] = message
    verdicts = {accepted[name] for name in COMMANDS_THAT_AGREE if name in accepted and name not in messages}
    if len(verdicts) > 1 and not _is_unfinished(path, options):
        usable = [name for name in COMMANDS_THAT_AGREE if accepted[name]]
        messages["agreement"] = f"only {' and '.join(usable)} accepted it, with options {list(options)}"
    shutil.rmtree(folder, ignore_errors=True)
    return [Fault(seed.kind, name, message, content) for name, message in messages.items()], any(accepted.values())


def _try(call: Callable[[], object]) -> tuple[bool, str | None]:
    """Whether a call accepted its input, and what is wrong with its behaviour."""
    started, megabytes = time.process_time(), _peak_megabytes()
    accepted, message = False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            silent(call)
        accepted = True
    except (ValueError, OSError) as error:
        message = _unfit_message(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit is a fault, too
        message = f"{type(error).__name__}: {shown(error)}"
    seconds, more = time.process_time() - started, _peak_megabytes() - megabytes
    if message is None and seconds > LONGEST_SECONDS:
        message = f"{seconds:.1f} s of processor time"
    if message is None and more > MOST_MEGABYTES:
        message = f"{more:.0f} MB of memory"
    return accepted, message


def _peak_megabytes() -> float:
    """The largest memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes there, kilobytes elsewhere


def _is_unfinished(path: Path, options: Sequence[str]) -> bool:
    """Whether the input is the record of an unfinished run. Of two options the last one counts, as on the command line."""
    given = dict(pairwise(options))
    named = {
        "column": given.get("--column"),
        "norm": given.get("--norm"),
        "pilot_num_training_steps": int(given["--num-training-steps"]) if "--num-training-steps" in given else None,
    }
    try:
        refine_sources(str(path), "adam", RefinementOptions.from_keywords(named))
    except UnfinishedRunError:
        return True
    except ValueError:
        pass
    return False


def _unfit_message(message: str) -> str | None:
    if "\n" in message or not message.isprintable():
        return f"an error message with control characters: {shown(message)}"
    if len(message) > LONGEST_MESSAGE + len("hf-refined-schedule refine: error: "):
        return f"an error message of {len(message)} characters: {shown(message)}"
    return None


def _command(words: list[str]) -> None:
    """Run a command; raise its error line, or a fault."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = run_command(words)
    if status == 2:
        raise ValueError(errors.getvalue().rstrip("\n"))
    if status != 0:
        raise RuntimeError(f"exit status {status}")


def _refine(path: Path, options: Sequence[str]) -> None:
    """Refine a schedule, and read the file again."""
    output = path.with_name("refined.json")
    _command(["refine", str(path), "-o", str(output), *options])
    try:
        schedule = read_schedule(output)
    except ValueError as error:
        raise RuntimeError(f"refine wrote a file that read_schedule refuses: {error}") from error
    _valid_grid(schedule.grid)


def _first_step(source: str) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_refined_schedule(optimizer, 0, 10, refined_from=source)
    optimizer.step()
    scheduler.step()
    if not 0 <= scheduler.get_last_lr()[0] <= 1:
        raise RuntimeError(f"a learning rate of {scheduler.get_last_lr()[0]}")


def _valid_grid(grid: np.ndarray) -> None:
    if not (np.isfinite(grid).all() and grid.min() >= 0 and grid.max() == 1):
        raise RuntimeError("a grid outside [0, 1]")


def _json_object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8", errors="replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("no object")
    return {name: value for name, value in content.items() if name != "refined_from"}

"""The answer of rank 0 on every rank: ranks that ask alone, forged messages, errors, and nodes without a shared disk."""

import hashlib
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hf_refined_schedule import GradientNorms, get_refined_schedule
from hf_refined_schedule.norms.gradient_norms import UnfinishedRunError
from hf_refined_schedule.norms.sources import MissingSourceError
from hf_refined_schedule.schedules.health import DegenerateScheduleError
from hf_refined_schedule.theory import refinement
from hf_refined_schedule.training import rank_zero
from hf_refined_schedule.training.rank_zero import MalformedMessageError, on_rank_zero

from .records import norms_of, schedule_of, write_norms
from .tiny import BIN, SCRIPTS, free_port, run_command, torchrun
from .tolerances import LAUNCH_SECONDS

ALONE = SCRIPTS / "one_rank_alone.py"


def expected(norms, **options):
    grid = schedule_of(norms_of(norms), **options).grid
    return [refinement.multiplier_at(grid, step / 20) for step in range(20)]


def test_rank_zero_answers_once_and_waits_for_nobody(tmp_path):
    """Also where it answered in a preview, alone, and the source has changed since."""
    norms, others = np.linspace(3, 1, 200), np.linspace(1, 2, 200)
    write_norms(tmp_path / "run.jsonl", norms.tolist())
    write_norms(tmp_path / "other.jsonl", others.tolist())
    done = torchrun(ALONE, tmp_path / "run.jsonl", "--other", tmp_path / "other.jsonl", "--report", tmp_path)
    assert (tmp_path / "rank1.json").exists(), done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    errors = [rank.pop("error") for rank in ranks]
    assert ranks[0] == ranks[1]
    assert ranks[0]["world_size"] == 2
    assert ranks[0]["together"] == ranks[0]["replaced"] == pytest.approx(expected(norms))
    assert ranks[0]["replaced after a preview"] == pytest.approx(expected(norms, smoothing=0.25))
    assert ranks[0]["first asked for after the change"] == pytest.approx(expected(others, smoothing=0.0))
    assert ranks[0]["two at once"] == [pytest.approx(expected(others, smoothing=0.5))] * 2
    assert errors == ["NotListed('as this rank said')", "RuntimeError('NotListed: as this rank said')"]
    assert ranks[0]["checkpoint"] == "checkpoint-20"
    assert ranks[0]["unreadable"] == "no permission to read unreadable"


def test_another_rank_that_asks_alone_is_told_so(tmp_path):
    write_norms(tmp_path / "run.jsonl", [1.0] * 50)
    done = torchrun(ALONE, tmp_path / "run.jsonl", "--second-rank-alone")
    assert done.returncode not in (None, 0)
    assert "Rank 1 waits for rank 0 to share the schedule refined from" in done.stderr
    assert "TimeoutError: Rank 1 waited 4 s for rank 0 to share the schedule refined from" in done.stderr
    assert "ended after" not in done.stderr


# --- two ranks in one process ---


class TwoRanks:
    """Two ranks that ask in turn, with a store between them."""

    def __init__(self, monkeypatch):
        self.store = dist.HashStore()
        self.store.set_timeout(timedelta(seconds=1))
        self._rank = 0
        monkeypatch.setattr(rank_zero, "process_group_store", lambda: self.store)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "get_rank", lambda: self._rank)

    def ask(self, rank, function, key="something"):
        self._rank = rank
        return on_rank_zero(function, key)

    def forge(self, *parts, key="something", num_parts=None):
        """Write what a program outside the run would, in place of rank 0."""
        name = f"hf_refined_schedule/{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        for number, part in enumerate(parts):
            self.store.set(f"{name}/{number}", part)
        self.store.set(f"{name}/num_parts", num_parts or str(len(parts)))


@pytest.fixture
def ranks(monkeypatch):
    return TwoRanks(monkeypatch)


def not_called():
    raise AssertionError("called on another rank, or a second time")


def test_values_arrive_as_they_are(ranks, monkeypatch):
    monkeypatch.setattr(rank_zero, "PART_BYTES", 7)
    values = {"text": "\udcffé\n", "nested": [1, None, {"a": [True, 0.1]}], "infinite": float("inf"), "none": None}
    arrays = {"vector": np.linspace(0, 1, 50) ** 3, "matrix": np.arange(6.0).reshape(2, 3).T, "empty": np.zeros((0, 2))}
    ranks.ask(0, lambda: {"matrix": arrays["matrix"], **values, **arrays})
    value, error = ranks.ask(1, not_called)
    assert error is None
    assert set(value) == {*values, *arrays}
    assert {name: value[name] for name in values} == values
    for name, array in arrays.items():
        assert (value[name].dtype, value[name].shape) == (np.float64, array.shape)
        assert value[name].tobytes() == array.tobytes()  # in the same order, too


def test_the_first_answer_to_a_key_is_the_answer(ranks):
    first, second = {"number": 1}, {"number": 2}
    assert ranks.ask(0, lambda: first).value is first
    for rank in (0, 1, 0, 1):
        assert ranks.ask(rank, not_called) == (first, None)
    assert ranks.ask(0, lambda: second, "something else").value is second
    assert ranks.ask(1, not_called, "something else").value == second
    assert ranks.ask(1, not_called).value == first


def test_the_first_error_is_the_answer_too(ranks):
    def fail():
        raise MissingSourceError("There is no run yet.")

    ranks.ask(0, fail)
    for rank in (0, 1):
        value, error = ranks.ask(rank, lambda: {"number": 1})
        assert (value, type(error), str(error)) == (None, MissingSourceError, "There is no run yet.")


class OwnError(Exception):
    pass


class OwnValueError(ValueError):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


class OwnMissingSourceError(MissingSourceError):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("two\nlines"), ValueError, "two\nlines"),
        (MissingSourceError("no file"), MissingSourceError, "no file"),
        (UnfinishedRunError("too short"), UnfinishedRunError, "too short"),
        (DegenerateScheduleError("one step"), DegenerateScheduleError, "one step"),
        (PermissionError(13, "Permission denied", "a"), PermissionError, "[Errno 13] Permission denied: 'a'"),
        (IsADirectoryError(21, "Is a directory", "a"), IsADirectoryError, "[Errno 21] Is a directory: 'a'"),
        (ConnectionResetError("gone"), OSError, "gone"),
        (TimeoutError("late"), TimeoutError, "late"),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), ValueError, "'utf-8' codec can't decode byte 0x61 in position 0: bad"),
        (OwnMissingSourceError("a class of its own"), MissingSourceError, "a class of its own"),
        (OwnValueError(1, 2), ValueError, "1 and 2"),
        (OwnError("a class of its own"), RuntimeError, "OwnError: a class of its own"),
        (KeyError("name"), RuntimeError, "KeyError: 'name'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_an_error_arrives_as_the_nearest_listed_class(ranks, error, kind, text):
    def fail():
        raise error

    assert ranks.ask(0, fail).error is error
    arrived = ranks.ask(1, not_called).error
    assert (type(arrived), str(arrived)) == (kind, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"array": np.zeros(2, dtype=np.float32)}, "array is a 1-dimensional array of float32"),
        ({"array": np.array(1.0)}, "array is a 0-dimensional array of float64"),
        ({"set": {1}}, "Object of type set is not JSON serializable"),
    ],
)
def test_a_value_that_cannot_be_shared_is_the_same_error_on_every_rank(ranks, value, text):
    for rank in (0, 1):
        error = ranks.ask(rank, lambda: value).error
        assert type(error) is TypeError
        assert str(error).startswith(text)


def test_without_a_process_group_an_error_stays_itself():
    error = OwnValueError(1, 2)

    def fail():
        raise error

    assert on_rank_zero(fail, "nothing").error is error


# --- messages that rank 0 did not write ---


class RunsCode:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def header(**changes):
    return json.dumps({"values": {}, "arrays": {}, "error": None, **changes}).encode() + b"\n"


def array(shape, dtype="<f8"):
    return header(arrays={"x": {"shape": shape, "dtype": dtype}})


FORGED = {
    "nothing": b"\n",
    "not JSON": b"{'values'}\n",
    "half of a message": header()[:20],
    "not a dictionary": b"[1, 2]\n",
    "a number": b"5\n",
    "not ASCII": '{"é": 1}\n'.encode(),
    "nested too deeply": b"[" * 100_000,
    "without an error or a value": b"{}\n",
    "without values": b'{"error": null, "arrays": {}}\n',
    "values in a list": header(values=[1]),
    "arrays in a list": header(arrays=[[3]]),
    "an array that is a number": header(arrays={"x": 5}),
    "an array without a type": header(arrays={"x": {"shape": [1]}}) + bytes(8),
    "an array that is too short": array([3]) + bytes(23),
    "an array that is too long": array([3]) + bytes(25),
    "an array of no dimension": array([]) + bytes(8),
    "an array of a negative size": array([-1]),
    "an array of half a size": array([1.0]) + bytes(8),
    "an array of a true size": array([True]) + bytes(8),
    "an array of the size of a word": array("1") + bytes(8),
    "an array of an enormous size": array([2**40, 2**40]),
    "an array of enormous emptiness": array([0, 10**30]),
    "an array of objects": array([1], "|O") + bytes(8),
    "an array of big-endian numbers": array([1], ">f8") + bytes(8),
    "an array of bytes": array([8], "|u1") + bytes(8),
    "an unknown error class": header(error={"class": "Anything", "text": "no"}),
    "the name of a function": header(error={"class": "eval", "text": "1"}),
    "an error that is no Exception": header(error={"class": "SystemExit", "text": "0"}),
    "a builtin error that is not listed": header(error={"class": "KeyError", "text": "no"}),
    "an error class in a list": header(error={"class": [1], "text": "no"}),
    "an error without a text": header(error={"class": "ValueError"}),
    "an error that is a word": header(error="ValueError"),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("message", FORGED.values(), ids=FORGED)
def test_a_forged_message_is_one_line(ranks, message, rank):
    ranks.forge(message)
    with pytest.raises(MalformedMessageError, match="message from rank 0 about something is malformed") as caught:
        ranks.ask(rank, not_called)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("num_parts", ["0", "-1", "2", "1000000000000", "many", "9" * 5000, "\n"])
def test_a_forged_number_of_parts_is_one_line(ranks, num_parts):
    ranks.forge(header(), num_parts=num_parts)
    with pytest.raises(MalformedMessageError):
        ranks.ask(1, not_called)


def test_a_forged_pickle_runs_nothing(ranks, tmp_path):
    bomb = pickle.dumps(RunsCode(tmp_path / "ran"))
    pickle.loads(bomb).close()
    (tmp_path / "ran").unlink()  # or it would not have been seen to run
    whole = [(bomb,), (header(values={"x": 1}) + bomb,), (header(arrays={"x": {"shape": [1], "dtype": "|O"}}) + bomb,)]
    for number, parts in enumerate(whole):
        ranks.forge(*parts, key=str(number))
        with pytest.raises(MalformedMessageError):
            ranks.ask(1, not_called, str(number))
    ranks.forge(header(), key="count", num_parts=bomb)
    with pytest.raises(MalformedMessageError):
        ranks.ask(1, not_called, "count")
    assert not (tmp_path / "ran").exists()


def fingerprint(grid):
    return hashlib.sha256(np.array(grid, dtype=float).tobytes()).hexdigest()[:12]


SCHEDULE = {
    "optimizer": "adam",
    "norm": "l1",
    "power": -1.0,
    "smoothing": 0.1,
    "source": "run",
    "best_peak_ratio": 1.0,
    "notes": [],
    "rising_norms": "keep",
}


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({}, [1.0]),
        ({}, [[1.0, 0.0]]),
        ({}, [float("nan"), 0.0]),
        ({}, [1e6, 0.0]),
        ({"power": "much"}, [1.0, 0.0]),
        ({"notes": 5}, [1.0, 0.0]),
        ({"grid": [1.0, 0.0]}, None),
        ({}, None),
    ],
    ids=["one value", "two dimensions", "not a number", "above 1", "a word", "no notes", "a list", "no grid"],
)
def test_a_forged_schedule_is_one_line(ranks, changes, grid):
    key = "the schedule refined from run for adam"
    raw = b"" if grid is None else np.array(grid).tobytes()
    arrays = {} if grid is None else {"grid": {"shape": np.shape(grid), "dtype": "<f8"}}
    values = {**SCHEDULE, "fingerprint": fingerprint([1.0, 0.0] if grid is None else grid), **changes}
    ranks.forge(header(values=values, arrays=arrays) + raw, key=key)
    ranks._rank = 1
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="malformed; only ranks of this run may write") as caught:
        get_refined_schedule(optimizer, 0, 2, refined_from="run")
    assert "\n" not in str(caught.value)


def test_a_schedule_arrives_as_it_is(ranks):
    """The message that the forged ones above differ from."""
    grid = np.array([0.25, 1.0, 0.0])
    values = {**SCHEDULE, "fingerprint": fingerprint(grid)}
    message = header(values=values, arrays={"grid": {"shape": [3], "dtype": "<f8"}}) + grid.tobytes()
    ranks.forge(message, key="the schedule refined from run for adam")
    ranks._rank = 1
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert get_refined_schedule(optimizer, 0, 2, refined_from="run").get_last_lr() == [0.25]


def test_every_schedule_has_a_key(ranks, tmp_path):
    """Also one of smoothing 0, and one of other norms in memory under the same name: no schedule is taken for another."""
    path = tmp_path / "run.jsonl"
    write_norms(path, np.linspace(3, 1, 40).tolist())
    memory = [
        GradientNorms(steps=np.arange(1, 41), l1=np.linspace(first, 1, 40), num_training_steps=40) for first in (2, 4)
    ]
    requests = [
        {"refined_from": path},
        {"refined_from": path, "smoothing": 0},
        {"refined_from": path, "power": -2},
        {"refined_from": [path, memory[0]]},
        {"refined_from": [path, memory[1]]},
    ]

    def fingerprints(rank):
        ranks._rank = rank
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
        return [
            get_refined_schedule(optimizer, 0, 2, allow_degenerate=True, **request).fingerprint for request in requests
        ]

    assert fingerprints(0) == fingerprints(1)
    assert len(set(fingerprints(0))) == len(requests)


# --- several nodes ---


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
            folder=nodes[rank], timeout=LAUNCH_SECONDS, ACCELERATE_USE_CPU="true",
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(launch, range(2)))
    grid = schedule_of(norms_of(norms)).grid
    for rank, node in enumerate(nodes):
        world_size, rates = (node / "out" / f"rank{rank}.txt").read_text().split(" ", 1)
        assert int(world_size) == 2, done[rank].stderr
        assert json.loads(rates)[:12] == pytest.approx(grid[:12].tolist())
    assert (nodes[0] / "out" / "gradient_norms.jsonl").exists()
    assert not (nodes[1] / "out" / "gradient_norms.jsonl").exists()

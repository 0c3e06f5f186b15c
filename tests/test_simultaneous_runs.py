"""Two processes that begin a run in one folder at the same moment: no file is lost or mixed, and the one that loses says so."""

import json
import sys

from experiments.processes import ProcessTree

from .tiny import PYTHONPATH, SCRIPTS, read_rows
from .tolerances import COMMAND_SECONDS

ROUNDS = 200
EARLIER = '{"format": "gradient_norms", "version": 1, "optimizer": "earlier", "num_training_steps": 1}\n'
IN_WORDS = ("another run begins there at the same moment", "another run has begun it anew")


def run_both(script, arguments, folder):
    """Start a process of `script` for each list of arguments at once; the exit codes and what each printed."""
    logs = [folder / f"log{number}.txt" for number in range(len(arguments))]
    with ProcessTree() as tree:
        processes = []
        for log, words in zip(logs, arguments, strict=True):
            with log.open("ab") as output:
                processes.append(
                    tree.start(
                        [sys.executable, str(SCRIPTS / script), *map(str, words)],
                        environment={"PYTHONPATH": PYTHONPATH},
                        folder=folder,
                        output=output,
                    )
                )
        assert tree.wait(COMMAND_SECONDS), "a process hangs"
        return [process.returncode for process in processes], [log.read_text() for log in logs]


def runs_in(folder):
    """The files of a folder by the run that wrote them: header and number of updates of each; mixed files fail."""
    runs = {}
    for file in folder.glob("gradient_norms*.jsonl"):
        header, *rows = [json.loads(line) for line in file.read_text().splitlines()]
        name = header["optimizer"]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), file
        assert {row.get("by", name) for row in rows} <= {name}, f"{file} is mixed"
        assert name not in runs, f"{name} has two files"
        runs[name] = header, len(rows)
    return runs


def test_two_writers_in_one_folder(tmp_path):
    root = tmp_path / "rounds"
    for number in range(ROUNDS):
        folder = root / f"{number:03}"
        folder.mkdir(parents=True)
        if number % 2:
            (folder / "gradient_norms.jsonl").write_text(EARLIER)
    codes, logs = run_both("norms_writer.py", [("one", "two", root), ("two", "one", root)], tmp_path)
    assert codes == [0, 0], logs
    outcomes = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")}
    num_told = 0
    for number, folder in enumerate(sorted(root.iterdir())):
        runs = runs_in(folder)
        assert ("earlier" in runs) == bool(number % 2), folder
        errors = []
        for name in ("one", "two"):
            outcome = outcomes[name][number]
            header, written = runs.get(name, (None, 0))
            assert written == outcome["written"], f"{folder}: updates of {name} are lost"
            if outcome["error"] is None:
                assert (written, header["num_training_steps"]) == (6, 6)
            else:
                errors.append(outcome["error"])
        assert len(errors) <= 1, f"both runs have stopped: {errors}"
        assert all(any(words in error for words in IN_WORDS) for error in errors), errors
        num_told += len(errors)
        left = {file.name for file in folder.iterdir()} - {"ready.one", "ready.two"}
        assert len(left) == len(runs), f"{left} in {folder}"
    assert num_told > 0, "the two never met"


def test_two_trainers_in_one_output_dir(tmp_path):
    """Each shows its own learning rate in all of its rows."""
    root = tmp_path / "rounds"
    for number in range(3):
        (root / str(number)).mkdir(parents=True)
    arguments = [("one", "two", 0.125, root), ("two", "one", 0.25, root)]
    codes, logs = run_both("trainers_at_once.py", arguments, tmp_path)
    assert codes == [0, 0], logs
    outcomes = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")}
    for number, folder in enumerate(sorted(root.iterdir())):
        rows_of = {"one": [], "two": []}
        for file in folder.glob("gradient_norms*.jsonl"):
            _, rows = read_rows(file)
            rates = {row["learning_rate"] for row in rows}
            assert len(rates) <= 1, f"{file} is mixed"
            if rates:
                rows_of["one" if rates == {0.125} else "two"].append([row["step"] for row in rows])
        warnings = {name: outcomes[name][number] for name in ("one", "two")}
        assert [] in warnings.values(), f"both runs have stopped: {warnings}"
        for name, messages in warnings.items():
            if not messages:
                assert rows_of[name] == [list(range(1, 121))]
            else:
                assert len(messages) == 1
                assert any(words in messages[0] for words in IN_WORDS), messages
                assert "Gradient norms are not recorded from update" in messages[0]
                (steps,) = rows_of[name] or [[]]
                assert steps == list(range(1, len(steps) + 1))
                assert f"from update {len(steps) + 1} on" in messages[0]

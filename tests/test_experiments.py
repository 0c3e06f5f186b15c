"""The library of the scripts: provenance and tables."""

import json
import re
import sys

import pandas as pd
import pytest
from experiments.provenance import ProvenanceFile, collect_provenance, package_versions, render_provenance
from experiments.tables import markdown_table


def test_a_table_is_aligned_and_its_cells_cannot_break_it():
    table = pd.DataFrame([["a|b", 1.5, "x"], ["two\nlines", 20.0, "longer"]], columns=["name", "RMSE", "RMSE"])
    assert markdown_table(table).splitlines() == [
        "| name      | RMSE | RMSE   |",
        "| --------- | ---- | ------ |",
        r"| a\|b      | 1.5  | x      |",
        "| two lines | 20.0 | longer |",
    ]


def test_a_table_keeps_whole_numbers_beside_fractions():
    assert markdown_table(pd.DataFrame({"count": [3], "share": [0.5]})).splitlines()[-1] == "| 3     | 0.5   |"


def test_a_table_without_rows_is_its_heading():
    assert markdown_table(pd.DataFrame(columns=["s", "name"])).splitlines() == ["| s   | name |", "| --- | ---- |"]


def test_provenance_holds_the_command_and_what_it_ran_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["anything.py", "--name", "a b"])
    record = collect_provenance("soak.py", 90.04, packages=["torch", "no-package-of-this-name"], threads=2)
    assert record["commands"] == ["python scripts/soak.py --name 'a b'"]
    assert list(record) == ["commands", "machine", "threads", "versions", "seconds"]
    assert record["versions"]["no-package-of-this-name"] == "not installed"
    assert re.fullmatch(r".+, \d+ cores, .+", record["machine"])
    rendered = render_provenance(record)
    assert rendered.startswith("## Provenance\n\n```bash\npython scripts/soak.py --name 'a b'\n```\n\n- machine: ")
    assert rendered.endswith(", no-package-of-this-name not installed\n- duration: 1.5 minutes")
    assert "\n- threads: 2\n" in rendered


def test_versions_are_of_the_installed_packages():
    assert package_versions(["pandas"]) == {"pandas": pd.__version__}


def test_a_provenance_file_adds_runs_up(tmp_path, monkeypatch):
    (tmp_path / "grid.json").write_text(json.dumps({"commands": ["first"], "seconds": 100.0}))
    monkeypatch.setattr(sys, "argv", ["pilot.py"])
    for _ in range(2):
        with ProvenanceFile(tmp_path, "pilot.py", processes=1) as file:
            assert file.previous["commands"][0] == "first"
    record = json.loads((tmp_path / "grid.json").read_text())
    assert record["commands"] == ["first", "python scripts/pilot.py"]
    assert 100.0 <= record["seconds"] < 160.0
    assert record["processes"] == 1


def test_an_interrupted_run_leaves_its_provenance(tmp_path):
    with pytest.raises(KeyboardInterrupt), ProvenanceFile(tmp_path, "pilot.py"):
        raise KeyboardInterrupt
    assert len(json.loads((tmp_path / "grid.json").read_text())["commands"]) == 1


def test_writing_twice_does_not_count_the_time_twice(tmp_path):
    (tmp_path / "grid.json").write_text(json.dumps({"commands": [], "seconds": 1000.0}))
    with ProvenanceFile(tmp_path, "pilot.py") as file:
        assert file.write()["seconds"] < 1500
    assert json.loads((tmp_path / "grid.json").read_text())["seconds"] < 1500

"""The notebook of the documentation runs from top to bottom in a fresh kernel."""

import json
import os

import pytest

from .tiny import BIN, PYTHONPATH, REPOSITORY
from .tolerances import COMMAND_SECONDS

NOTEBOOK = REPOSITORY / "docs" / "refined_schedule.ipynb"


def test_it_holds_no_outputs():
    """Outputs are of a machine and a day; whoever opens the notebook makes their own."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_it_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; pip install '.[docs]'")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed; pip install '.[docs]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed; pip install '.[docs]'")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=COMMAND_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "verdict: " in printed
    assert "bounded_warmup " in printed
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert (tmp_path / "runs" / "refined" / "gradient_norms.jsonl").is_file()

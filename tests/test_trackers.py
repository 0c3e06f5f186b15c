"""What trackers hold of a refined run, read back with their own tools."""

import json
import re
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerCallback

from hf_refined_schedule.training import optional_pictures, trackers

from .pages import blocks, run_code
from .records import write_norms

INSTALLED = [name for name in ("wandb", "tensorboard", "mlflow", "trackio") if name in packages_distributions()]

BEFORE = """
from experiments.tiny_models import tiny_data, tiny_model
model, dataset = tiny_model(), tiny_data(64)
"""

WANDB = """
import wandb, json
summary = wandb.run.summary
facts = {
    "l1": summary["train/grad_norm_l1"], "fingerprint": wandb.run.config["refined_schedule"],
    "pictures": [summary["refined_schedule"]["path"]], "offline": wandb.run.offline, "folder": wandb.run.dir,
}
wandb.finish()
open("wandb.json", "w").write(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's code has run with every tracker that is installed."""
    folder = tmp_path_factory.mktemp("page")
    norms = [10.0, 8, 6, 5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    write_norms(folder / "runs" / "baseline" / "gradient_norms.jsonl", norms)
    ((_, code),) = blocks("trackers")
    assert 'report_to=["wandb"]' in code
    code = BEFORE + code.replace('["wandb"]', repr(INSTALLED)) + (WANDB if "wandb" in INSTALLED else "")
    environment = {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": folder, "TRACKIO_DIR": folder / "trackio",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MPLBACKEND": "agg",
    }  # fmt: skip
    printed = run_code(code, "python", folder, **{name: str(value) for name, value in environment.items()})
    return folder, re.search(r"Refined schedule from \S+ \((\w+)\)", printed)[1]


def last_l1(folder):
    return json.loads((folder / "runs" / "refined" / "gradient_norms.jsonl").read_text().splitlines()[-1])["l1"]


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_tensorboard(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, fingerprint = folder
    (events,) = (folder / "runs" / "refined").glob("runs/*/events*")
    held = EventAccumulator(str(events)).Reload()
    assert held.Scalars("train/grad_norm_l1")[-1].value == pytest.approx(last_l1(folder))
    (text,) = held.Tensors("refined_schedule/text_summary")
    assert text.tensor_proto.string_val == [fingerprint.encode()]
    (image,) = held.Images("refined_schedule")
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_wandb(folder):
    pytest.importorskip("wandb")
    folder, fingerprint = folder
    held = json.loads((folder / "wandb.json").read_text())
    assert (held["fingerprint"], held["offline"]) == (fingerprint, True)
    assert held["l1"] == pytest.approx(last_l1(folder))
    (picture,) = held["pictures"]
    assert is_picture(Path(held["folder"]) / picture)


READ_MLFLOW = """
import json
from mlflow import MlflowClient
(run,) = MlflowClient().search_runs(["0"])
print(json.dumps([run.data.tags["refined_schedule"], run.data.metrics["grad_norm_l1"], run.info.artifact_uri]))
"""


@pytest.mark.parametrize("fault", [OSError("No space left on device"), ImportError("numpy.core.multiarray")])
def test_a_picture_that_cannot_be_drawn_costs_a_warning(monkeypatch, caplog, fault):
    def fail(*args, **kwargs):
        raise fault

    class Tracker(TrainerCallback):
        pass

    seen = []
    monkeypatch.setattr(optional_pictures, "find_spec", lambda name: name)
    monkeypatch.setattr(optional_pictures, "norms_and_schedule_figure", fail)
    monkeypatch.setitem(trackers._SHOWS, Tracker, lambda callback, shown: seen.append(shown))
    trackers.show_schedule([Tracker()], "0123", np.ones(3))
    assert seen == [("0123", None)]
    assert "There is no picture of the refined schedule: " in caplog.text


def test_mlflow(folder):
    pytest.importorskip("mlflow")
    folder, fingerprint = folder
    printed = run_code(READ_MLFLOW, "python", folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")
    held, l1, artifacts = json.loads(printed.splitlines()[0])
    assert (held, l1) == (fingerprint, pytest.approx(last_l1(folder)))
    assert is_picture(folder / artifacts.removeprefix("file://") / "refined_schedule.png")


READ_TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("huggingface")
print(json.dumps([run.config["refined_schedule"], SQLiteStorage.get_logs("huggingface", run.name)]))
"""


def test_trackio(folder):
    pytest.importorskip("trackio")
    folder, fingerprint = folder
    printed = run_code(READ_TRACKIO, "python", folder, TRACKIO_DIR=str(folder / "trackio"))
    held, logs = json.loads(printed.splitlines()[0])
    assert held == fingerprint
    assert [log["train/grad_norm_l1"] for log in logs if "train/grad_norm_l1" in log][-1] == pytest.approx(
        last_l1(folder)
    )
    assert sum("refined_schedule" in log for log in logs) == 1
    (picture,) = (folder / "trackio").rglob("*.png")
    assert is_picture(picture)

"""Programs that do not import this package, and in which `refined` is there all the same, because somebody asked for it."""

import json
import os
import sys
from pathlib import Path

import pytest

import hf_refined_schedule
from hf_refined_schedule.compatibility.import_hook import call_once_imported

from .pages import blocks
from .reference import bounded_warmup_rates
from .tiny import BIN, PYTHONPATH, read_rows, run_command

SITECUSTOMIZE, BASELINE, REFINED = (code for language, code in blocks("without-code") if language in ("python", "json"))
"""The page's file, and its configurations."""

STARTUP = str(Path(hf_refined_schedule.__file__).parent / "startup")

PROGRAM = """
import sys
from experiments.tiny_models import tiny_data, tiny_model
from transformers import HfArgumentParser, Trainer, TrainingArguments

arguments = HfArgumentParser(TrainingArguments).parse_json_file(sys.argv[1])[0]
Trainer(tiny_model(), arguments, train_dataset=tiny_data()).train()
"""


def path_of(*folders):
    return os.pathsep.join([*map(str, folders), PYTHONPATH])


@pytest.fixture
def site(tmp_path):
    """A folder with the documented line as `sitecustomize.py`."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return folder


# --- a whole run that is driven by a configuration file ---


def train(folder, site, configuration, **environment):
    (folder / "program.py").write_text(PROGRAM)
    options = {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, **json.loads(configuration)}
    (folder / "configuration.json").write_text(json.dumps(options))
    words = (BIN / "python", "program.py", "configuration.json")
    return run_command(*words, folder=folder, PYTHONPATH=path_of(site), **environment)


def test_a_configuration_file_alone_records_and_refines(tmp_path, site):
    for configuration in (BASELINE, REFINED):
        done = train(tmp_path, site, configuration, HF_REFINED_SCHEDULE_AUTOREGISTER="1")
        assert done.returncode == 0, done.stderr
    files = [tmp_path / "runs" / name / "gradient_norms.jsonl" for name in ("baseline", "refined")]
    (header, rows), (_, refined) = map(read_rows, files)
    assert (header["num_training_steps"], len(rows), len(refined)) == (24, 24, 24)
    # transformers' default peak is 5e-5.
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-5 * (1 - t / 24) for t in range(24)])
    expected = bounded_warmup_rates([row["l1"] for row in rows], 0.2)  # a window of five, the default for so few norms
    assert [row["learning_rate"] for row in refined] == pytest.approx([5e-5 * value for value in expected])


def test_nothing_happens_unless_it_is_asked_for(tmp_path, site):
    done = train(tmp_path, site, BASELINE)
    assert done.returncode == 1
    assert "gradient_norms is not supported" in done.stderr  # the words of transformers


# --- what happens when Python starts ---

STATE = (
    "import sys; names = ('torch', 'transformers', 'hf_refined_schedule', 'numpy');"
    "print(sum('hf_refined' in type(finder).__module__ for finder in sys.meta_path), *[n for n in names if n in sys.modules])"
)


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        pytest.param({}, "0 hf_refined_schedule", id="nobody asks"),
        pytest.param({"HF_REFINED_SCHEDULE_AUTOREGISTER": ""}, "0 hf_refined_schedule", id="empty"),
        pytest.param({"HF_REFINED_SCHEDULE_AUTOREGISTER": "0"}, "0 hf_refined_schedule", id="zero"),
        pytest.param({"HF_REFINED_SCHEDULE_AUTOREGISTER": "1"}, "1 hf_refined_schedule", id="a user asks"),
        pytest.param({"HF_REFINED_SCHEDULE_LAUNCH": "{}"}, "1 hf_refined_schedule", id="the launcher asks"),
    ],
)
def test_startup_loads_nothing_heavy(site, environment, printed):
    done = run_command(BIN / "python", "-c", STATE, PYTHONPATH=path_of(site), **environment)
    assert (done.stdout.strip(), done.stderr) == (printed, "")


def start(code, *folders, **environment):
    environment = {"HF_REFINED_SCHEDULE_AUTOREGISTER": "1", "PYTHONPATH": path_of(STARTUP, *folders), **environment}
    return run_command(BIN / "python", "-c", code, **environment)


def test_the_sitecustomize_of_the_environment_runs_too(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("NAME = 'of the environment'\n")
    done = start(f"import sitecustomize, sys; print(sitecustomize.NAME, {STARTUP!r} in sys.path); {STATE}", tmp_path)
    assert done.stdout.splitlines() == ["of the environment False", "1 hf_refined_schedule"], done.stderr


def test_without_another_sitecustomize(tmp_path):
    done = start(f"import sitecustomize; print(sitecustomize.__file__); {STATE}")
    file, state = done.stdout.splitlines()
    assert (file, state, done.stderr) == (f"{STARTUP}/sitecustomize.py", "1 hf_refined_schedule", "")


def test_an_error_in_the_sitecustomize_of_the_environment_is_shown_as_without_us(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import a_module_that_is_not_there\n")
    ours = start("print('runs')", tmp_path)
    alone = run_command(BIN / "python", "-c", "print('runs')", PYTHONPATH=path_of(tmp_path))
    assert "a_module_that_is_not_there" in alone.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (alone.returncode, "runs\n", alone.stderr)


def test_a_python_that_lacks_the_package_starts_as_ever():
    done = run_command(
        BIN / "python", "-S", "-c", "import site; site.execsitecustomize(); print('runs')", PYTHONPATH=STARTUP
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "runs\n", "")


# --- when the function is called ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in which `outer` imports `wanted` while it is half imported, and `broken` fails after that."""
    folder = tmp_path / "some_package"
    folder.mkdir()
    modules = {
        "__init__": "", "wanted": "", "other": "",
        "outer": "from . import wanted\nREADY = True\n",
        "broken": "from . import wanted\nraise ImportError('broken')\n",
    }  # fmt: skip
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield "some_package"
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.split(".")[0] == "some_package"]:
        del sys.modules[name]


def calls_when_imported(package, *names):
    """How often the function had been called after each import."""
    seen, calls = [], []
    call_once_imported(package, f"{package}.wanted", lambda: calls.append(sys.modules.get(f"{package}.outer")))
    for name in names:
        try:
            __import__(f"{package}.{name}")
        except ImportError:
            seen.append(str(len(calls)) + " failed")
        else:
            seen.append(str(len(calls)))
    return seen, calls


def test_it_is_called_once_after_the_import(package):
    finders = list(sys.meta_path)
    assert calls_when_imported(package, "other", "wanted", "outer")[0] == ["0", "1", "1"]
    assert sys.meta_path == finders


def test_it_is_called_when_nothing_is_half_imported(package):
    seen, (outer,) = calls_when_imported(package, "outer")
    assert (seen, outer.READY) == (["1"], True)


def test_an_import_that_fails_is_not_the_end(package):
    assert calls_when_imported(package, "broken", "other")[0] == ["0 failed", "1"]


def test_a_module_that_is_imported_already(package):
    __import__(f"{package}.wanted")
    assert calls_when_imported(package)[1] == [None]
    assert calls_when_imported(package, "other")[0] == ["1"]

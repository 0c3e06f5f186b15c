"""What importing costs, what it changes (nothing), and that the package's imports point one way."""

import ast
import json
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_refined_schedule

from .tolerances import COMMAND_SECONDS

PACKAGE = Path(hf_refined_schedule.__file__).parent

LAYERS = [
    "theory",
    "norms",
    "schedules",
    "compatibility",
    "autoregister",
    "startup",
    "plots",
    "recording",
    "training",
    "integrations",
    "commands",
    "cli",
    "__main__",
]
"""Folders, and modules that are a layer of their own. A layer may import only layers before it, and modules of its own."""

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)
WITHOUT_TORCH = [module for module in MODULES if module.split(".")[0] in ("theory", "norms", "schedules")]


def run_python(code, *arguments):
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules_imported(source, module="module"):
    """The package's modules that the source of `module` imports, also inside functions, by their path in the package."""
    folders = module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                parents = ["hf_refined_schedule", *folders[: len(folders) - node.level + 1]]
                home = ".".join([*parents, home]).rstrip(".")
            names = [f"{home}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {
            name.removeprefix("hf_refined_schedule.") for name in names if name.startswith("hf_refined_schedule.")
        }
    return {_module_of(name) for name in found} - {"__version__"}


def _module_of(name):
    """A module's path, without the name that is imported from it."""
    words = name.split(".")
    while len(words) > 1 and ".".join(words) not in MODULES:
        words.pop()
    return ".".join(words)


def foreign_imports(source):
    """The top-level packages outside the standard library that a module's source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


# --- the direction of imports ---


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        pytest.param("cli", "import numpy, json", set(), id="other packages"),
        pytest.param(
            "theory.classical", "from .bounds import last_iterate_bound", {"theory.bounds"}, id="the same folder"
        ),
        pytest.param(
            "norms.sources", "from ..theory.bounds import rank_schedules", {"theory.bounds"}, id="another folder"
        ),
        pytest.param("norms.sources", "from ..theory import bounds as b", {"theory.bounds"}, id="a module of a folder"),
        pytest.param(
            "cli", "from .norms import sources, log_rows", {"norms.sources", "norms.log_rows"}, id="two modules"
        ),
        pytest.param("cli", "from . import __version__", set(), id="the version"),
        pytest.param("cli", "from . import load_norms", {"load_norms"}, id="a lazy name hides its module, so it fails"),
        pytest.param("cli", "import hf_refined_schedule.theory.bounds", {"theory.bounds"}, id="absolute"),
        pytest.param("cli", "from hf_refined_schedule.theory.bounds import f", {"theory.bounds"}, id="absolute from"),
        pytest.param("cli", "def f():\n    from .theory.bounds import g", {"theory.bounds"}, id="inside a function"),
        pytest.param("cli", "import hf_refined_schedule_extra", set(), id="a name that begins alike"),
    ],
)
def test_the_walker_finds_imports(module, source, expected):
    assert modules_imported(source, module) == expected


def test_every_module_belongs_to_a_layer():
    assert {module.split(".")[0] for module in MODULES} == set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    layer = module.split(".")[0]
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    source = (PACKAGE / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert {imported.split(".")[0] for imported in modules_imported(source, module)} <= set(allowed)


def test_no_modules_import_each_other():
    sources = {module: (PACKAGE / module.replace(".", "/")).with_suffix(".py").read_text() for module in MODULES}
    TopologicalSorter({module: modules_imported(source, module) for module, source in sources.items()}).prepare()


def test_the_package_itself_imports_none_of_its_modules():
    assert modules_imported((PACKAGE / "__init__.py").read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("theory.")])
def test_the_mathematics_imports_numpy_and_scipy_only(module):
    source = (PACKAGE / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert foreign_imports(source) <= {"numpy", "scipy"}


# --- the weight of imports ---


@pytest.mark.parametrize(
    ("module", "left_alone"),
    [
        pytest.param("", ["numpy", "scipy", "torch", "transformers", "accelerate", "matplotlib"], id="the package"),
        *[
            pytest.param(f".{module}", ["torch", "transformers", "accelerate", "matplotlib"], id=module)
            for module in WITHOUT_TORCH
        ],
        pytest.param(
            ".training.scheduler, hf_refined_schedule.recording.recorder",
            ["transformers", "matplotlib"],
            id="scheduler and recorder",
        ),
    ],
)
def test_an_import_loads_no_more_than_it_needs(module, left_alone):
    code = f"import hf_refined_schedule{module}, sys; print(*[name for name in {left_alone} if name in sys.modules])"
    assert run_python(code) == ""


def test_the_mathematics_is_used_without_torch():
    code = (
        "import sys, hf_refined_schedule as package\n"
        "package.refine_schedule([3.0, 1.0, 2.0]), package.last_iterate_bound([1.0, 0.5], [1.0, 1.0])\n"
        "package.smooth_norms([3.0, 1.0]), package.linear_decay(3), package.load_norms, package.GradientNorms\n"
        "print(*[name for name in ['torch', 'transformers', 'accelerate', 'matplotlib'] if name in sys.modules])"
    )
    assert run_python(code) == ""


# --- what imports change ---

# One interpreter for all that needs transformers, because loading it takes seconds. A stub counts the calls of
# `register()`, so that each import is seen to make its own.
IMPORT_EVERYTHING = """
import importlib, json, sys
from transformers import optimization
from transformers.trainer_utils import SchedulerType

facts = {}
package, sparing, registering = json.loads(sys.argv[1])

def known():
    functions = sorted((key.value, id(value)) for key, value in optimization.TYPE_TO_SCHEDULER_FUNCTION.items())
    return [(member.name, member.value) for member in SchedulerType], functions, sorted(vars(SchedulerType))

before = known()
importlib.import_module(package)
facts["changed by the package"] = known() != before
for module in sparing:
    importlib.import_module(f"{package}.{module}")
facts["changed by modules that only define"] = known() != before

registration = importlib.import_module(f"{package}.training.registration")
register, calls = registration.register, []
registration.register = lambda: calls.append(module)
for module in registering:
    importlib.import_module(f"{package}.{module}")
registration.register = register
facts["called register"] = calls
facts["changed by anything else"] = known() != before
register()
facts["changed by register"] = known() != before
facts["new schedules"] = sorted({value for _, value in known()[0]} - {value for _, value in before[0]})

star = {}
exec(f"from {package} import *", star)
facts["public names"] = {name: value.__name__ for name, value in star.items() if name != "__builtins__"}
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts():
    registering = ["training.callback", "training.training_args", "training.trainer"]
    sparing = [
        *WITHOUT_TORCH,
        "compatibility.libraries",
        "recording.recorder",
        "training.scheduler",
        "training.registration",
    ]
    return json.loads(run_python(IMPORT_EVERYTHING, json.dumps(["hf_refined_schedule", sparing, registering])))


def test_importing_the_package_changes_nothing_in_transformers(facts):
    assert not facts["changed by the package"]


def test_importing_up_to_registration_changes_nothing_in_transformers(facts):
    assert not facts["changed by modules that only define"]


def test_importing_what_users_train_with_registers_and_does_nothing_else(facts):
    assert facts["called register"] == ["training.callback", "training.training_args", "training.trainer"]
    assert not facts["changed by anything else"]


def test_register_adds_refined_alone(facts):
    assert facts["changed by register"], "else the tests above could not see a change"
    assert facts["new schedules"] == ["refined"]


# --- the public names ---

PUBLIC_NAMES = {
    "GradientNormCallback",
    "GradientNormRecorder",
    "GradientNorms",
    "LossLaw",
    "RefinedScheduleArguments",
    "RefinedScheduleMixin",
    "RefinedScheduleTrainer",
    "fit_loss_law",
    "get_refined_schedule",
    "last_iterate_bound",
    "linear_decay",
    "extend_run",
    "load_losses",
    "load_norms",
    "predict_losses",
    "minimize_predicted_loss",
    "optimize_schedule",
    "rank_schedules",
    "refine_schedule",
    "register",
    "register_scheduler",
    "smooth_norms",
}


def test_the_public_names_are_listed():
    assert set(hf_refined_schedule.__all__) >= PUBLIC_NAMES
    assert set(dir(hf_refined_schedule)) >= PUBLIC_NAMES | {"__version__"}


def test_a_star_import_gives_every_public_name_its_own_object(facts):
    assert facts["public names"] == {name: name for name in hf_refined_schedule.__all__}


@pytest.mark.parametrize("name", ["no_such_name", "refined", "__wrapped__"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=name):
        getattr(hf_refined_schedule, name)
    assert not hasattr(hf_refined_schedule, name)


def test_the_version_is_a_string_of_numbers():
    assert all(part.isdigit() for part in hf_refined_schedule.__version__.split(".")[:2])

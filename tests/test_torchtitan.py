"""The page on torchtitan, with its own containers of optimizers and schedulers, and its own log."""

import pytest
import torch

from .pages import blocks, run_page
from .reference import bounded_warmup_rates
from .refusals import refuses

pytest.importorskip("torchtitan", reason="torchtitan is not installed")

from torchtitan.components.metrics import TensorBoardLogger
from torchtitan.components.optimizer import default_adamw

UPDATES = 40
NORMS = [5.0 - 0.1 * t if t < 20 else 3.0 + 0.01 * t for t in range(UPDATES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's commands have run on a log of torchtitan."""
    folder = tmp_path_factory.mktemp("page")
    logger = TensorBoardLogger(str(folder / "outputs" / "tb"))
    for step, norm in enumerate(NORMS, start=1):
        logger.log({"grad_norm": norm, "lr/AdamW": 1e-3}, step)
    logger.close()
    run_page("torchtitan", folder, languages=("bash",))
    return folder


def optimizers():
    torch.manual_seed(0)
    config = default_adamw(lr=0.01)
    config.implementation = "for-loop"  # the default needs a GPU
    return config.build(model_parts=[torch.nn.Linear(3, 1), torch.nn.Linear(2, 1)])


def rates_of(schedulers, optimizers, steps):
    seen = []
    for _ in range(steps):
        seen.append(set(schedulers.get_metrics().values()))
        optimizers.step()
        schedulers.step()
    assert all(len(rates) == 1 for rates in seen), "all optimizers have one rate"
    return [rates.pop() for rates in seen]


def config(folder, monkeypatch, **options):
    """The page's configuration."""
    monkeypatch.chdir(folder)
    (code,) = [code for language, code in blocks("torchtitan") if language == "python"]
    namespace = {}
    exec(code, namespace)
    made = namespace["lr_scheduler"]
    for name, value in options.items():
        setattr(made, name, value)
    return made


def expected():
    return bounded_warmup_rates(NORMS, 0.1)


def test_the_page(folder, monkeypatch):
    containers = optimizers()
    assert len(containers) == 2
    schedulers = config(folder, monkeypatch).build(optimizers=containers, training_steps=UPDATES)
    rates = rates_of(schedulers, containers, UPDATES)
    assert rates == pytest.approx([0.01 * value for value in expected()], rel=1e-5)  # TensorBoard holds float32


def test_torchtitans_own_options(folder, monkeypatch):
    made = config(folder, monkeypatch, warmup_steps=4, min_lr_factor=0.1, total_steps=UPDATES)
    containers = optimizers()
    rates = rates_of(made.build(optimizers=containers, training_steps=7), containers, 7)
    ramp = [0, 1 / 4, 1 / 2, 3 / 4, 1, 1, 1]
    floors = [0.1 + 0.9 * value for value in expected()[:7]]
    assert rates == pytest.approx([0.01 * min(pair) for pair in zip(floors, ramp, strict=True)], rel=1e-5)


# torchtitan 0.3 calls `get_lr` of its schedulers.
@pytest.mark.filterwarnings("ignore:To get the last learning rate computed by the scheduler:UserWarning")
def test_a_resumed_run_goes_on(folder, monkeypatch):
    made = config(folder, monkeypatch)
    containers = optimizers()
    schedulers = made.build(optimizers=containers, training_steps=UPDATES)
    rates_of(schedulers, containers, 15)
    again = optimizers()
    resumed = made.build(optimizers=again, training_steps=UPDATES)
    resumed.load_state_dict(schedulers.state_dict())
    rest = rates_of(schedulers, containers, 25)
    assert rates_of(resumed, again, 25) == rest == pytest.approx([0.01 * value for value in expected()[15:]], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"refined_from": ""}, ["refined_from", "''"]),
        ({"refined_from": "nothing.json"}, ["nothing.json"]),
        ({"decay_ratio": 0.2}, ["decay_ratio", "leave them out"]),
        ({"decay_type": "cosine"}, ["decay_type", "leave them out"]),
    ],
)
def test_mistakes(folder, monkeypatch, options, words):
    with refuses(*words):
        config(folder, monkeypatch, **options).build(optimizers=optimizers(), training_steps=UPDATES)

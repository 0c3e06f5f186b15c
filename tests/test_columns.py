"""Which columns of a log are norms, steps and epochs: tables of names as frameworks write them."""

from pathlib import Path

import pytest

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.columns import NoColumnError, epoch_column, kind_of, norm_columns, step_candidates
from hf_refined_schedule.norms.step_order import ENTRIES_COUNTED

from .records import entry, json_lines, write_state
from .refusals import refuses

LOG = Path("log.csv")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("grad_norm", "l2", id="transformers"),
        pytest.param("train/grad_norm", "l2", id="its W&B"),
        pytest.param("brave-run-7 - train/grad_norm", "l2", id="an export of W&B"),
        pytest.param("l1-run - train/grad_norm", "l2", id="a run whose name says l1"),
        pytest.param("grad_norm_l1", "l1", id="this package"),
        pytest.param("Grad_Norm", "l2", id="capitals"),
        pytest.param("optim/total_grad_norm", "l2", id="OLMo"),
        pytest.param("grad_2.0_norm_total", "l2", id="Lightning, L2"),
        pytest.param("grad_1.0_norm_total", "l1", id="Lightning, L1"),
        pytest.param("grad_3.0_norm_total", None, id="Lightning, another order"),
        pytest.param("l2_norm/grad/global", "l2", id="Composer"),
        pytest.param("grad norm", "l2", id="Megatron's console"),
        pytest.param("grad-norm", "l2", id="Megatron's TensorBoard"),
        pytest.param("gnorm", "l2", id="fairseq"),
        pytest.param("actor/grad_norm", "l2", id="verl"),
        pytest.param("data.actor/grad_norm", "l2", id="verl, nested"),
        pytest.param("gradient_norm", None, id="a name that does not say"),
    ],
)
def test_the_kind_of_a_norm(name, kind):
    assert kind_of(name) == kind
    if kind is not None:
        assert norm_columns(["step", name, "loss"], LOG) == {kind: name}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["grad_norm", "max_grad_norm"], {"l2": "grad_norm"}, id="a clipping threshold"),
        pytest.param(["grad_norm", "grad_norm/layer.0", "grad_norm/layer.1"], {"l2": "grad_norm"}, id="layers"),
        pytest.param(["a/grad_norm_l2", "grad_norm", "b"], {"l2": "grad_norm"}, id="the whole gradient"),
        pytest.param(
            ["grad_2.0_norm/w", "grad_2.0_norm_total"], {"l2": "grad_2.0_norm_total"}, id="Lightning's layers"
        ),
        pytest.param(["l2_norm/grad/w", "l2_norm/grad/global"], {"l2": "l2_norm/grad/global"}, id="Composer's layers"),
        pytest.param(["gnorm_l1", "grad_norm"], {"l1": "gnorm_l1", "l2": "grad_norm"}, id="both norms"),
        pytest.param(["grad_norm__MIN", "grad_norm", "grad_norm__MAX"], {"l2": "grad_norm"}, id="a range of W&B"),
    ],
)
def test_the_norm_among_others(names, expected):
    assert norm_columns(names, LOG) == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param(["actor/grad_norm", "critic/grad_norm"], ["several", "'critic/grad_norm'"], id="two models"),
        pytest.param(["gradient_norm/a", "gradient_norm/b"], ["several"], id="layers alone"),
        pytest.param(["gradient_norm"], ["L1 or an L2", "--norm l1"], id="a name that does not say"),
    ],
)
def test_an_unclear_norm_must_be_named(names, words):
    with refuses(*words):
        norm_columns(names, LOG)


def test_a_log_without_a_norm():
    with refuses("no column that is named as a gradient norm", "'step', 'max_grad_norm'", error=NoColumnError):
        norm_columns(["step", "max_grad_norm"], LOG)


@pytest.mark.parametrize(
    "name",
    [
        "step",
        "Step",
        "global_step",
        "Global Step",
        "train/global_step",
        "trainer/global_step",
        "global_step/max_steps",
        "iteration",
        "iter",
        "update",
        "num_updates",
        "train_step",
        "train/iteration",
        "data.step",
        "run - _step",
    ],
)
def test_a_column_of_steps(name):
    assert step_candidates(["loss", name, "eval_steps_per_second", "max_steps", "_step__MIN"]) == [name]


def test_updates_come_before_log_entries():
    names = ["_step", "iter", "step", "train/global_step"]
    assert step_candidates(names) == ["train/global_step", "step", "iter", "_step"]


@pytest.mark.parametrize("name", ["epoch", "Epoch", "train/epoch"])
def test_a_column_of_epochs(name):
    assert epoch_column(["num_train_epochs", name, "epoch_time"]) == name


# --- through a reader ---

VALUES = [float(value) for value in range(40, 0, -1)]


def test_the_steps_are_those_of_the_rows_with_norms(tmp_path):
    """As swift writes it: `global_step` is in the last row alone, which has no norm."""
    rows = [
        {"grad_norm": value, "global_step/max_steps": f"{10 * index}/438"}
        for index, value in enumerate(VALUES, start=1)
    ]
    rows.append({"train_runtime": 3.5, "global_step": 438, "global_step/max_steps": "438/438"})
    norms = load_norms(json_lines(tmp_path / "logging.jsonl", rows))
    assert norms.steps.tolist() == list(range(10, 401, 10))
    assert norms.l2.tolist() == VALUES
    assert norms.num_training_steps == 438


def test_the_steps_of_a_trainers_state_are_its_own(tmp_path):
    """A callback may add values that are named like steps."""
    history = [entry(step, num_updates=4 * step) for step in range(1, 41)]
    norms = load_norms(write_state(tmp_path / "trainer_state.json", history, max_steps=40))
    assert norms.steps.tolist() == list(range(1, 41))


def test_a_total_of_an_epoch_is_not_that_of_the_run(tmp_path):
    rows = [
        {"grad_norm": 1.0, "iter": f"{iteration}/20", "epoch": epoch} for epoch in (1, 2) for iteration in range(1, 21)
    ]
    norms = load_norms(json_lines(tmp_path / "log.jsonl", rows))
    assert norms.steps.tolist() == list(range(1, 41))
    assert (norms.num_training_steps, norms.total_steps) == (None, 40)


def test_nested_objects(tmp_path):
    rows = [{"step": step, "data": {"actor/grad_norm": value}} for step, value in enumerate(VALUES, start=1)]
    path = json_lines(tmp_path / "log.jsonl", rows)
    assert load_norms(path).l2.tolist() == VALUES
    assert load_norms(path, column="data.actor/grad_norm").l2.tolist() == VALUES


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_separators_of_thousands(tmp_path, delimiter):
    norms = [f"{value + 1500:,.2f}" for value in VALUES]
    rows = [["step", "grad_norm"], *([f"{500 * number:,}", norm] for number, norm in enumerate(norms, start=1))]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(delimiter.join(f'"{value}"' for value in row) for row in rows))
    assert load_norms(path).steps.tolist() == list(range(500, 500 * len(VALUES) + 1, 500))
    assert load_norms(path).l2.tolist() == [float(norm.replace(",", "")) for norm in norms]


def test_steps_that_are_no_numbers_are_named(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,grad_norm\n" + "".join(f"{number}k,1.5\n" for number in range(1, 31)))
    with refuses("'step' holds no numbers of updates, such as '30k'", "leave the column out"):
        load_norms(path)


def test_where_no_steps_are_found_it_is_said(tmp_path):
    """Rows without the norm, such as those of an evaluation, are no updates."""
    rows = [{"grad_norm": value} for value in VALUES]
    rows.insert(10, {"eval_loss": 3.0})
    norms = load_norms(json_lines(tmp_path / "log.jsonl", rows))
    assert norms.steps.tolist() == list(range(1, 41))
    assert norms.description.endswith(f"norms, of every entry, to entry 40 of 40, {ENTRIES_COUNTED}")


def test_norm_decides_what_a_column_is_whatever_its_name(tmp_path):
    rows = [{"step": step, "grad_norm_l2": value} for step, value in enumerate(VALUES, start=1)]
    norms = load_norms(json_lines(tmp_path / "log.jsonl", rows), column="grad_norm_l2", norm="l1")
    assert (norms.l1.tolist(), norms.l2) == (VALUES, None)

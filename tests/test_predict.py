"""Losses of schedules that have not run: what is predicted from a log, what is refused, and what the commands print."""

import json
import math
import re

import numpy as np
import pytest
import torch

from hf_refined_schedule import get_refined_schedule, predict_losses
from hf_refined_schedule.cli import main
from hf_refined_schedule.schedules.predicting import FittedLaw, best_predicted_schedule, fit_law, predict_extension
from hf_refined_schedule.schedules.refined_schedule import Extension, RefinedSchedule
from hf_refined_schedule.schedules.schedule_file import read_schedule, write_schedule

from .records import write_norms, write_state
from .refusals import refuses

STEPS, WARMUP, PEAK = 2000, 100, 1e-3


def loss_of(rates):
    """The exponential annealing of docs/method.md, summed update by update."""
    progress = noise = 0.0
    for rate in rates:
        progress += rate ** (2 / 3)
        kept = math.exp(-rate / PEAK / 200)
        noise = kept * noise + (1 - kept) * rate**0.8
    return 2.0 + 1.3 * progress**-0.5 + 0.2 * noise / PEAK**0.8


def losses_of(rates, every):
    """The law's losses at every `every`-th update of a run, with the scatter of a log."""
    scatter = np.random.default_rng(0).normal(0, 2e-3, len(rates))
    return [loss_of(rates[:step]) + scatter[step - 1] for step in range(every, len(rates) + 1, every)]


def after_warmup(shape, steps=STEPS):
    """The rates of a run: a ramp over 100 updates, then a shape over the rest."""
    rest = np.arange(steps - WARMUP) / (steps - WARMUP)
    return PEAK * np.concatenate([np.arange(WARMUP) / WARMUP, [shape(progress) for progress in rest]])


def cosine(progress):
    return 0.5 * (1 + np.cos(np.pi * progress))


def wsd(progress):
    return min(1.0, 5 * (1 - progress))


def log_of(rates, every=10, losses=None, **more):
    losses = losses_of(rates, every) if losses is None else losses
    steps = range(every, len(rates) + 1, every)
    return [
        {"step": step, "loss": loss, "learning_rate": rates[step - 1], **more}
        for step, loss in zip(steps, losses, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output_dir of a recorded run with cosine decay."""
    folder = tmp_path_factory.mktemp("cosine")
    write_state(folder / "trainer_state.json", log_of(after_warmup(cosine), epoch=0.5), max_steps=STEPS)
    path = write_norms(folder / "gradient_norms.jsonl", list(np.linspace(3, 1, STEPS)))
    lines = path.read_text().splitlines()
    rows = [
        {**json.loads(line), "learning_rate": rate} for line, rate in zip(lines[1:], after_warmup(cosine), strict=True)
    ]
    path.write_text("\n".join([lines[0], *map(json.dumps, rows)]) + "\n")
    return folder


@pytest.fixture(scope="module")
def prediction(folder):
    return predict_losses(folder)


@pytest.fixture
def no_second_fit(monkeypatch, prediction):
    """Commands take the law that is fitted already; fitting it takes seconds."""
    monkeypatch.setattr("hf_refined_schedule.schedules.predicting.fit_law", lambda *_, **__: prediction.fitted)
    monkeypatch.setattr("hf_refined_schedule.commands.rank.fit_law", lambda *_, **__: prediction.fitted)


# --- the predictions ---


def test_the_losses_of_schedules_that_have_not_run(prediction):
    """All schedules have the warm-up of the run, and their predictions come close to the law that made the log."""
    assert prediction.refusals == () and prediction.notes == []
    assert (prediction.fitted.warmup_steps, prediction.fitted.num_training_steps, prediction.fitted.peak) == (
        100,
        2000,
        PEAK,
    )
    first = [row for row in prediction.rows if row.num_training_steps == STEPS and row.peak == PEAK]
    assert [row.loss for row in first] == sorted(row.loss for row in first)
    assert [row.schedule for row in first] == list(prediction.schedules)
    rows = {row.schedule: row for row in first}
    for name, shape in {
        "cosine": cosine,
        "linear": lambda u: 1 - u,
        "wsd 20% linear": wsd,
    }.items():
        rates = after_warmup(shape)
        np.testing.assert_allclose(PEAK * prediction.schedules[name], rates, atol=1e-12)
        assert rows[name].loss == pytest.approx(loss_of(rates), abs=0.03), name  # of a range of 0.2
        assert rows[name].low < rows[name].loss < rows[name].high


def test_other_horizons_and_peaks(prediction):
    others = prediction.rows[len(prediction.schedules) :]
    assert {(row.num_training_steps, row.peak) for row in others} == {(4000, PEAK), (6000, PEAK), (2000, PEAK / 2)}
    assert len(others) == 3 * len(prediction.schedules)
    assert all(row.low < row.loss < row.high for row in others)
    (longer,) = [row for row in others if row.schedule == "linear" and row.num_training_steps == 4000]
    assert longer.loss == pytest.approx(loss_of(after_warmup(lambda u: 1 - u, 4000)), abs=0.06)


def test_the_refined_schedule_is_capped_by_the_warmup(prediction):
    refined = prediction.schedules["refined"]
    assert refined[:3].tolist() == [0, 0.01, 0.02]
    assert refined.max() == 1.0
    assert refined[-1] < 0.01


def test_schedule_files_and_names(folder, no_second_fit, tmp_path):
    grid = np.array([1.0, 0.0])
    write_schedule(RefinedSchedule(grid, "by hand", None), tmp_path / "mine.json")
    asked = predict_losses(
        folder, num_training_steps=1000, learning_rate=PEAK / 2, schedules=["linear", tmp_path / "mine.json"]
    )
    assert {(row.num_training_steps, row.peak) for row in asked.rows} == {(1000, PEAK / 2)}
    mine, linear = asked.schedules[str(tmp_path / "mine.json")], asked.schedules["linear"]
    # A file is capped by the ramp; linear decay begins after it.
    assert mine[[50, 100, 500]].tolist() == pytest.approx([0.5, 0.9, 0.5])
    assert linear[[50, 100, 550]].tolist() == pytest.approx([0.5, 1.0, 0.5])


def test_a_law_of_two_logs(tmp_path):
    sources = []
    for name, shape in {"cosine": cosine, "constant": lambda u: 1.0}.items():
        sources.append(
            write_state(tmp_path / name / "trainer_state.json", log_of(after_warmup(shape), every=20), max_steps=STEPS)
        )
    fitted = fit_law(sources)
    assert len(fitted.logs) == 2 and fitted.law.refusals == ()
    rates = after_warmup(wsd)
    assert fitted.final_loss("wsd", rates / PEAK, PEAK).loss == pytest.approx(loss_of(rates), abs=0.01)


# --- the gate and the reach ---


@pytest.mark.parametrize(
    "rows, words",
    [
        (log_of(after_warmup(lambda u: 1.0), every=20), "does not show what a decay brings"),
        (log_of(after_warmup(cosine), every=20, epoch=3.0), "saw its data 3 times"),
    ],
    ids=["no annealing", "several epochs"],
)
def test_the_gate_says_why_it_predicts_nothing(tmp_path, capsys, rows, words):
    """check answers with status 0 whatever it finds, and so does predict."""
    source = write_state(tmp_path / "trainer_state.json", rows, max_steps=STEPS)
    assert (
        main(["predict", str(source), "-o", str(tmp_path / "losses.png"), "--optimize", str(tmp_path / "best.json")])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{source} (a Trainer's log): 100 losses, one every 20 updates")
    assert all(line.startswith("no prediction: ") for line in lines[2:])
    assert any(words in line for line in lines[2:])
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]


def test_an_evaluation_has_no_epochs(tmp_path):
    """The losses of an evaluation are of data that no epoch repeats."""
    rows = log_of(after_warmup(cosine), every=20, epoch=3.0)
    rows = [{**row, "eval_loss": row["loss"]} for row in rows]
    source = write_state(tmp_path / "trainer_state.json", rows, max_steps=STEPS)
    assert fit_law(source, column="eval_loss").law.refusals == ()


RATES = list(after_warmup(cosine))


@pytest.mark.parametrize(
    "rows",
    [
        log_of(RATES, losses=[2.0] * 200),
        log_of(RATES, losses=[2 + number / 100 for number in range(200)]),
    ],
    ids=["constant loss", "rising loss"],
)
def test_a_log_that_no_law_fits_gives_one_line(tmp_path, capsys, rows):
    source = write_state(tmp_path / "trainer_state.json", rows, max_steps=STEPS)
    assert main(["predict", str(source)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert str(source) in printed.err and "losses that do not fall" in printed.err


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"num_training_steps": 6001},
            ["--num-training-steps (num_training_steps) is 6001", "reaches from 102, after the warm-up, to 6000"],
        ),
        ({"num_training_steps": 101}, ["--num-training-steps (num_training_steps) is 101"]),
        ({"num_training_steps": 0}, ["--num-training-steps (num_training_steps) is 0"]),
        (
            {"learning_rate": 2e-3},
            ["--learning-rate (learning_rate) is 0.002", "from 0.00025 to the highest logged rate, 0.001"],
        ),
        ({"learning_rate": 1e-4}, ["--learning-rate (learning_rate) is 0.0001"]),
        ({"schedules": ["cosin"]}, ["schedule is 'cosin'", "pass refined or one of", "'cosine'"]),
        ({"schedules": ["linear, warm-up"]}, ["neither a schedule file nor a known schedule"]),
    ],
    ids=str,
)
def test_what_lies_beyond_the_reach_of_the_law_is_refused(folder, no_second_fit, options, words):
    with refuses(*words):
        predict_losses(folder, **options)


def test_what_is_no_schedule_for_a_run_from_its_beginning_is_refused(folder, no_second_fit, tmp_path):
    with refuses(str(folder), "is no schedule file"):
        predict_losses(folder, schedules=[str(folder)])
    extension = RefinedSchedule(np.ones(81), "a checkpoint", None, extension=Extension(40, 80, PEAK))
    write_schedule(extension, tmp_path / "extension.json")
    with refuses("extends a run", "'hf-refined-schedule extend'"):
        predict_losses(folder, schedules=str(tmp_path / "extension.json"))


# --- the commands ---


def test_the_command(folder, no_second_fit, prediction, tmp_path, capsys):
    picture, best = tmp_path / "losses.png", tmp_path / "best.json"
    assert main(["predict", str(folder), "-o", str(picture), "--optimize", str(best)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"{folder}/trainer_state.json (a Trainer's log): 200 losses, one every 10 updates, to update 2000"
    )
    assert lines[1].startswith("law: ")
    assert lines[2].startswith(
        "Predicted loss after 2000 updates with a peak learning rate of 0.001 and a warm-up of 100"
    )
    assert re.split(r" {2,}", lines[3].strip()) == [
        "loss",
        "95 % interval",
        "4000 updates",
        "6000 updates",
        "peak 0.0005",
    ]
    names = [re.split(r" {2,}", line)[0] for line in lines[4 : 4 + len(prediction.schedules)]]
    assert names == list(prediction.schedules)
    (optimized,) = [line for line in lines if line.startswith("optimized: ")]
    assert re.search(
        rf"difference to {re.escape(names[0])}: [+-]0\.\d{{4}} \[[+-]0\.\d{{4}}, [+-]0\.\d{{4}}\]$", optimized
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    grid = read_schedule(best).grid
    assert len(grid) == 2001 and grid.max() == 1
    assert (np.diff(grid[WARMUP:]) <= 0).all()  # a decay after the warm-up
    assert float(optimized.split()[1]) <= prediction.rows[0].loss + 1e-3


def test_the_optimized_schedule_is_trained_with_as_it_is(prediction, tmp_path):
    schedule = best_predicted_schedule(prediction.fitted, num_training_steps=1000, learning_rate=PEAK / 2)
    write_schedule(schedule, tmp_path / "best.json")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK / 2)
    scheduler = get_refined_schedule(optimizer, 0, 1000, refined_from=tmp_path / "best.json")
    rates = []
    for _ in range(1000):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx((PEAK / 2 * schedule.grid[:-1]).tolist())
    predicted = prediction.fitted.final_loss("optimized", schedule.grid[:-1], PEAK / 2).loss
    for shape in (lambda u: 1 - u, cosine, wsd):
        other = after_warmup(shape, 1000) / PEAK
        assert predicted <= prediction.fitted.final_loss("other", other, PEAK / 2).loss + 1e-3


def test_json(folder, no_second_fit, capsys):
    assert main(["predict", str(folder), "--json", "--schedule", "cosine", "--schedule", "linear"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["refusals"] == [] and report["warmup_steps"] == 100
    assert report["sources"] == [f"{folder}/trainer_state.json"]
    assert {row["schedule"] for row in report["predictions"]} == {"cosine", "linear"}
    assert len(report["predictions"]) == 8  # of two schedules, at three horizons, and at half the peak
    assert report["predictions"][0]["low"] < report["predictions"][0]["high"]


def test_rank_shows_the_predicted_losses(folder, no_second_fit, prediction, capsys):
    assert main(["rank", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("best peak  predicted loss")
    losses = {re.split(r" {2,}", line)[0]: float(line.split()[-1]) for line in lines[2:]}
    assert losses["cosine"] < losses["constant"]
    assert losses["linear, warm-up"] == pytest.approx(
        next(row.loss for row in prediction.rows if row.schedule == "linear"), abs=2e-3
    )  # the warm-up of the run is 5 %, too


def test_rank_says_why_there_are_none(tmp_path, capsys):
    write_norms(tmp_path / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    assert main(["rank", str(tmp_path)]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("no predicted losses: ") and "records no losses" in last


@pytest.fixture
def stopped(prediction):
    """The schedule of the run up to update 1,000, and then another."""

    def schedule_of(ahead, total):
        past = after_warmup(cosine)[:1000] / PEAK
        grid = np.concatenate([past, past[-1] * np.asarray(ahead)])
        return RefinedSchedule(grid, "a checkpoint", None, extension=Extension(1000, total, PEAK))

    return schedule_of


def test_what_an_extension_will_bring(stopped, no_second_fit):
    schedule = stopped(np.linspace(1, 0, 1001), 2000)
    loss, before = predict_extension(schedule)
    assert loss.loss == pytest.approx(loss_of(PEAK * schedule.grid[:-1]), abs=0.02)
    assert before == pytest.approx(loss_of(PEAK * schedule.grid[:1000]), abs=0.02)
    assert loss.low < loss.loss < loss.high


def test_what_no_law_says_of_an_extension(stopped, no_second_fit):
    with refuses("The rate rises again"):
        predict_extension(stopped(np.linspace(1, 2, 1001), 2000))
    with refuses("--num-training-steps (num_training_steps) is 7000"):
        predict_extension(stopped(np.linspace(1, 0, 6001), 7000))
    with refuses("extends no run"):
        predict_extension(RefinedSchedule(np.array([1.0, 0.0]), "by hand", None))


def test_the_longest_reach_of_a_pilot(prediction):
    """A run that stopped early is predicted up to three times what it logged, not what it planned."""
    law, (log,) = prediction.fitted
    object.__setattr__(log, "num_training_steps", 20_000)
    try:
        assert FittedLaw(law, [log]).longest == 6000
    finally:
        object.__setattr__(log, "num_training_steps", STEPS)


def test_the_interval_of_a_difference_is_narrower_than_those_of_the_losses(prediction):
    """The same draws predict both losses, so that what they share cancels."""
    law = prediction.fitted.law
    linear, cosine_rates = (PEAK * prediction.schedules[name] for name in ("linear", "cosine"))
    low, high = law.difference_interval(linear, cosine_rates)
    assert low <= law.predict(linear)[-1] - law.predict(cosine_rates)[-1] <= high
    (linear_low, linear_high), (cosine_low, cosine_high) = law.interval(linear), law.interval(cosine_rates)
    assert high - low < linear_high - cosine_low - (linear_low - cosine_high)
    same_low, same_high = law.difference_interval(linear, linear)
    assert same_low < 0 < same_high, "two runs of one schedule differ too"
    assert law.difference_interval(cosine_rates, linear) == pytest.approx((-high, -low))


def test_extend_says_what_the_extension_will_bring(tmp_path, capsys):
    """From a checkpoint with four fifths of the run."""
    made = 1600
    rates = after_warmup(cosine)
    checkpoint = tmp_path / f"checkpoint-{made}"
    path = write_state(checkpoint / "trainer_state.json", log_of(rates[:made]), max_steps=STEPS)
    path.write_text(json.dumps({**json.loads(path.read_text()), "global_step": made}))
    torch.save({"base_lrs": [PEAK], "_last_lr": [float(rates[made])]}, checkpoint / "scheduler.pt")
    assert main(["extend", str(checkpoint), "--cooldown", "400", "-o", str(tmp_path / "schedule.json")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("predicted loss")]
    loss, low, high, before = map(float, re.findall(r"\d\.\d{4}", line))
    ahead = np.concatenate([rates[:made], rates[made] * (1 - np.arange(400) / 400)])
    assert line.startswith("predicted loss after update 2000: ")
    assert low <= loss_of(ahead) <= high
    assert loss == pytest.approx(loss_of(ahead), abs=0.01)
    assert before == pytest.approx(loss_of(rates[:made]), abs=0.01)

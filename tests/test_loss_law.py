"""The law of the loss: its sums against literal twins, synthetic curves recovered, the gate, refusals, the least prediction."""

import math
import time

import numpy as np
import pytest

from hf_refined_schedule.theory.loss_fit import LossFit
from hf_refined_schedule.theory.loss_forms import (
    ANNEALING_SUM,
    DECAY_PER_DECREASE,
    EXPONENTIAL_ANNEALING,
    NUM_DECREASES,
    Schedule,
    annealing_sum,
    decay_per_decrease,
    exponential_annealing,
)
from hf_refined_schedule.theory.loss_law import fit_loss_law, held_out_from, minimize_predicted_loss
from hf_refined_schedule.theory.loss_logs import checked_logs

from . import reference
from .refusals import refuses
from .tolerances import (
    EXACT_ROUNDING,
    FIT_LAW_SECONDS,
    LAW_BY_KNOTS,
    MERGED_DECREASES,
    PREDICT_SECONDS,
    RECOVERED_LOSS,
)

PEAK = 3e-4
STEPS = 6000


def warmup_then(shape, steps=STEPS, warmup=200):
    """Rates that ramp up to the peak, then follow `shape` of the progress."""
    progress = np.arange(steps - warmup) / (steps - warmup)
    return PEAK * np.concatenate([np.arange(1, warmup + 1) / warmup, shape(progress)])


COSINE = warmup_then(lambda u: 0.55 + 0.45 * np.cos(np.pi * u))
LINEAR = warmup_then(lambda u: 1 - u)
WSD = warmup_then(lambda u: np.minimum(1, 5 * (1 - u)))
CONSTANT = warmup_then(np.ones_like)
TWO_STAGES = warmup_then(lambda u: np.where(u < 0.5, 1.0, 0.3))

# L_0, A, B, alpha, then the shape, in rates over the peak; A belongs to the sum of the whole cosine run.
SUM_LAW = LossFit(ANNEALING_SUM, np.array([3.0, 0.4, 0.15, 0.5, math.log(300)]), PEAK, float(np.sum(COSINE)) / PEAK)
DECAY_LAW = LossFit(
    DECAY_PER_DECREASE, np.array([3.0, 0.4, 0.2, 0.5, math.log(20), 0.5, 0.5]), PEAK, float(np.sum(COSINE)) / PEAK
)
EXPONENTIAL_LAW = LossFit(
    EXPONENTIAL_ANNEALING, np.array([3.0, 0.4, 0.15, 0.5, math.log(200)]), PEAK, float(np.sum(COSINE)) / PEAK
)
LAWS = {law.form.name: law for law in (EXPONENTIAL_LAW, SUM_LAW, DECAY_LAW)}
LOGGED = np.arange(20, STEPS + 1, 20)


def logged(law, rates, noise=0.0, seed=0):
    """A log of the law's own losses: rates, steps, losses."""
    steps = np.arange(20, len(rates) + 1, 20)
    losses = law.predict(rates, steps - 1)
    return rates, steps, losses * (1 + noise * np.random.default_rng(seed).standard_normal(len(losses)))


def last_loss(law, rates):
    return law.predict(rates, np.array([len(rates) - 1]))[0]


@pytest.fixture(scope="module")
def cosine_law():
    """A law fitted to a cosine run."""
    return fit_loss_law(*logged(EXPONENTIAL_LAW, COSINE, noise=2e-4))


# --- the sums against their literal twins ---

RANDOM_RATES = np.random.default_rng(3).uniform(0.1, 1.0, 40)
"""Falls and rises, all of them kept."""


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_annealing_sum_is_the_papers(decay):
    found = annealing_sum(Schedule.of(RANDOM_RATES), np.arange(40), np.array([math.log(-1 / math.log(decay))]))
    np.testing.assert_allclose(found, reference.annealing_sum(RANDOM_RATES, decay), rtol=1e-9, atol=EXACT_ROUNDING)


@pytest.mark.parametrize(("speed", "beta", "gamma"), [(0.05, 0.5, 0.6), (2.0, 1.0, 0.0), (0.5, 0.3, 0.9)])
def test_the_decay_per_decrease_is_the_papers(speed, beta, gamma):
    shape = np.array([-math.log(speed), beta, gamma])
    found = decay_per_decrease(Schedule.of(RANDOM_RATES), np.arange(40), shape)
    expected = reference.decay_per_decrease(RANDOM_RATES, speed, beta, gamma)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=EXACT_ROUNDING)


@pytest.mark.parametrize("speed", [0.01, 0.3, 5.0])
def test_exponential_annealing_is_a_leaky_mean_of_the_rates_over_their_sum(speed):
    found = exponential_annealing(
        EXPONENTIAL_ANNEALING.schedule(RANDOM_RATES), np.arange(40), np.array([-math.log(speed)])
    )
    expected = reference.exponential_annealing(RANDOM_RATES, speed)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=EXACT_ROUNDING)


def test_one_drop_by_hand():
    # Rates 1, 1, 0.5: eta_0 = 0, so decreases of -1, 0 and 0.5. lambda = 0.5: -1 * 7/8 + 0.5 * 1/2 after the third update.
    schedule = Schedule.of(np.array([1.0, 1.0, 0.5]))
    shape = np.array([math.log(1 / math.log(2))])
    np.testing.assert_allclose(annealing_sum(schedule, np.arange(3), shape), [-0.5, -0.75, -0.625], rtol=EXACT_ROUNDING)
    # C = 1, beta = 1, gamma = 1: -1 * (1 - 1/3.5) + 0.5 * (1 - 1/(1 + 2 * 0.5)).
    found = decay_per_decrease(schedule, np.array([2]), np.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(found, [-2.5 / 3.5 + 0.25], rtol=EXACT_ROUNDING)
    # C = log 2: each unit of the sum halves what is left. -1 * (1 - 2^-2.5) + 0.5 * (1 - 2^-0.5).
    found = exponential_annealing(schedule, np.array([2]), np.array([-math.log(math.log(2))]))
    np.testing.assert_allclose(found, [-1 + 2**-2.5 + 0.5 * (1 - 2**-0.5)], rtol=EXACT_ROUNDING)


@pytest.mark.parametrize("rates", [COSINE, LINEAR, WSD, TWO_STAGES], ids=["cosine", "linear", "wsd", "two stages"])
def test_merging_decreases_changes_little(rates):
    relative = rates[::10] / PEAK
    found = decay_per_decrease(Schedule.of(relative), np.arange(600), np.array([math.log(2), 0.5, 0.5]))
    expected = reference.decay_per_decrease(relative, 0.5, 0.5, 0.5)
    np.testing.assert_allclose(found, expected, atol=MERGED_DECREASES)


def test_rates_that_jitter_are_merged_too():
    jittering = np.random.default_rng(0).uniform(0.5, 1.0, 5000)
    assert len(Schedule.of(jittering).decreases.sizes) <= 2 * NUM_DECREASES


def test_a_long_prediction_is_interpolated():
    schedule = Schedule.of(np.repeat(COSINE / PEAK, 2))
    shape = np.array([math.log(20), 0.5, 0.5])
    every = decay_per_decrease(schedule, np.arange(2 * STEPS), shape)
    some = np.arange(500, 2 * STEPS, 97)
    np.testing.assert_allclose(every[some], decay_per_decrease(schedule, some, shape), atol=LAW_BY_KNOTS)


# --- the law's own curves ---


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("rates", [COSINE, WSD], ids=["cosine", "wsd"])
def test_the_laws_own_curves_are_recovered(law, rates):
    fitted = fit_loss_law(*logged(law, rates, noise=2e-4))
    assert fitted.refusals == ()
    for other in (LINEAR, WSD, COSINE, CONSTANT, TWO_STAGES):
        assert abs(fitted.predict_by_form(other)[law.form.name][-1] - last_loss(law, other)) < RECOVERED_LOSS
        low, high = fitted.interval(other)
        assert low < last_loss(law, other) < high


def test_the_parameters_of_a_law_are_recovered_from_two_logs():
    logs = [logged(EXPONENTIAL_LAW, rates, noise=1e-4) for rates in (COSINE, TWO_STAGES)]
    fitted = fit_loss_law(*map(list, zip(*logs, strict=True)))
    assert fitted.form == "exponential annealing"
    assert list(fitted.parameters) == ["L0", "A", "alpha", "B", "C"]
    expected = EXPONENTIAL_LAW.parameters()
    assert fitted.parameters["L0"] == pytest.approx(3.0, abs=0.02)
    assert fitted.parameters["alpha"] == pytest.approx(0.5, abs=0.05)
    assert fitted.parameters["B"] == pytest.approx(expected["B"], rel=0.1)
    assert fitted.parameters["C"] == pytest.approx(expected["C"], rel=0.2)


def test_another_form_is_taken_only_where_it_predicts_the_end_of_the_log_clearly_better():
    # A drop to 2 % of the peak: by the number of updates the noise is forgotten at once, by the sum of the rates hardly.
    slow = SUM_LAW._replace(coefficients=np.array([3.0, 0.4, 0.6, 0.5, math.log(300)]))
    drop = warmup_then(lambda u: np.where(u < 0.75, 1.0, 0.02))
    assert fit_loss_law(*logged(slow, drop)).form == "annealing sum"
    assert fit_loss_law(*logged(SUM_LAW, COSINE)).form == "exponential annealing"


def test_the_parameters_of_the_annealing_sum_are_the_papers():
    parameters = SUM_LAW.parameters()
    rates = COSINE[::50]
    rate_sum, annealing = sum(rates), reference.annealing_sum(rates, parameters["lambda"])[-1]
    second_sum = annealing / (1 - parameters["lambda"])
    loss = parameters["L0"] + parameters["A"] * rate_sum ** -parameters["alpha"] - parameters["C"] * second_sum
    assert last_loss(SUM_LAW, rates) == pytest.approx(loss, rel=1e-9)
    assert parameters["lambda"] == pytest.approx(math.exp(-1 / 300), rel=EXACT_ROUNDING)


def test_the_parameters_of_the_decay_per_decrease_are_the_papers():
    parameters = DECAY_LAW.parameters()
    rates = COSINE[::50]
    annealing = reference.decay_per_decrease(rates, parameters["C"], parameters["beta"], parameters["gamma"])[-1]
    loss = parameters["L0"] + parameters["A"] * sum(rates) ** -parameters["alpha"] - parameters["B"] * annealing
    assert last_loss(DECAY_LAW, rates) == pytest.approx(loss, rel=1e-9)


def test_the_parameters_of_exponential_annealing_are_those_of_its_formula():
    parameters = EXPONENTIAL_LAW.parameters()
    rates = COSINE[::50]
    annealing = reference.exponential_annealing(rates, parameters["C"])[-1]
    progress = sum(rate ** (2 / 3) for rate in rates)
    loss = parameters["L0"] + parameters["A"] * progress ** -parameters["alpha"] - parameters["B"] * annealing
    assert last_loss(EXPONENTIAL_LAW, rates) == pytest.approx(loss, rel=1e-9)


def test_outliers_count_little():
    rates, steps, losses = logged(EXPONENTIAL_LAW, COSINE, noise=2e-4)
    spoilt = losses.copy()
    spoilt[40::50] *= 1.3
    assert (
        abs(fit_loss_law(rates, steps, spoilt).predict(WSD)[-1] - last_loss(EXPONENTIAL_LAW, WSD)) < 2 * RECOVERED_LOSS
    )


def test_a_fit_is_the_same_each_time_and_for_any_unit_of_the_rate(cosine_law):
    rates, steps, losses = logged(EXPONENTIAL_LAW, COSINE, noise=2e-4)
    scaled = fit_loss_law(1024 * rates, steps, losses)  # a power of 2, so that relative rates are the same
    assert scaled.predict(1024 * WSD)[-1] == cosine_law.predict(WSD)[-1]
    assert scaled.interval(1024 * WSD) == cosine_law.interval(WSD)


def test_intervals_nest_and_hold_the_difference_of_two_schedules(cosine_law):
    law = cosine_law
    wide, narrow = law.interval(WSD, level=0.95), law.interval(WSD, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert wide[0] < law.predict(WSD)[-1] < wide[1]
    low, high = law.difference_interval(CONSTANT, WSD)
    assert 0 < low < last_loss(EXPONENTIAL_LAW, CONSTANT) - last_loss(EXPONENTIAL_LAW, WSD) < high
    low, high = law.difference_interval(LINEAR, LINEAR)
    assert low < 0 < high, "two runs of one schedule differ too"


def test_a_long_run_is_fitted_and_predicted_in_seconds():
    rates = np.repeat(COSINE, 17)
    steps = np.arange(100, len(rates) + 1, 10)
    started = time.perf_counter()
    law = fit_loss_law(rates, steps, SUM_LAW.predict(rates, steps - 1))
    fitted = time.perf_counter()
    assert {losses.shape for losses in law.predict_by_form(rates).values()} == {(102_000,)}
    assert fitted - started < FIT_LAW_SECONDS
    assert time.perf_counter() - fitted < PREDICT_SECONDS


# --- the gate ---


def test_the_gate_refuses_a_log_without_annealing():
    law = fit_loss_law(*logged(SUM_LAW, CONSTANT, noise=2e-4))
    assert any("does not show what a decay brings" in reason for reason in law.refusals)


def test_the_gate_refuses_several_epochs(cosine_law):
    assert cosine_law.refusals == ()
    (reason,) = fit_loss_law(*logged(SUM_LAW, COSINE, noise=2e-4), epochs=3.0).refusals
    assert "3 times" in reason


def test_the_gate_refuses_a_decay_without_effect():
    undertrained = SUM_LAW._replace(coefficients=np.array([1.0, 3.0, 0.0, 0.5, math.log(300)]))
    law = fit_loss_law(*logged(undertrained, COSINE, noise=5e-3))
    assert any("cannot be told from 0" in reason for reason in law.refusals)


def test_the_gate_refuses_a_log_whose_end_is_not_predicted():
    rates, steps, losses = logged(SUM_LAW, COSINE, noise=2e-4)
    late = losses * np.where(steps > 0.85 * STEPS, 0.9, 1.0)
    assert any("more than 1%" in reason for reason in fit_loss_law(rates, steps, late).refusals)
    noisy = logged(SUM_LAW, COSINE, noise=0.05)
    assert any("predicted" in reason for reason in fit_loss_law(*noisy).refusals)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        # Losses after updates 20, 40, .., 6000; the first tenth is left out, and 271 are averaged in 135 pairs, the last of
        # which stands at the 0-based update 5999. The first of the last 27 is 26 * 40 before it.
        pytest.param(COSINE, 4959, id="cosine: the last fifth"),
        pytest.param(CONSTANT, 4959, id="constant: the last fifth"),
        # The decay takes the last sixth of 5,800 updates: half of it is over 483 updates before the end, at 5517.
        pytest.param(warmup_then(lambda u: np.minimum(1, 6 * (1 - u))), 5519, id="wsd: the second half of its decay"),
    ],
)
def test_what_is_held_out(rates, expected):
    (log,) = checked_logs(*logged(SUM_LAW, rates))
    assert held_out_from(log) == expected


def test_every_form_predicts(cosine_law):
    losses = cosine_law.predict_by_form(LINEAR)
    assert next(iter(losses)) == cosine_law.form
    assert set(losses) == set(LAWS)
    assert losses[cosine_law.form][-1] == cosine_law.predict(LINEAR)[-1]
    for form in LAWS:
        assert losses[form][-1] == pytest.approx(last_loss(EXPONENTIAL_LAW, LINEAR), abs=0.05)


# --- logs that cannot be used ---

GOOD = logged(SUM_LAW, COSINE)


def changed(position, change):
    """The good log with one of its arrays changed."""
    log = [array.copy() for array in GOOD]
    log[position] = change(log[position])
    return log


def with_value(array, index, value):
    array = array.astype(float)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("log", "words"),
    [
        pytest.param(changed(2, lambda a: np.full_like(a, 3.0)), ["do not fall"], id="constant loss"),
        pytest.param(changed(2, lambda a: a[::-1].copy()), ["do not fall"], id="rising loss"),
        pytest.param((COSINE, [3000, 6000], [3.5, 3.4]), ["too few losses", ": 2, but", "15"], id="two rows"),
        pytest.param((COSINE, [], []), ["too few losses", ": 0, but", "15"], id="no rows"),
        pytest.param(changed(0, lambda a: with_value(a, 7, np.nan)), ["update 8", "nan"], id="a missing rate"),
        pytest.param(changed(0, lambda a: with_value(a, 7, -1)), ["update 8", "-1"], id="a negative rate"),
        pytest.param(changed(0, np.zeros_like), ["All 6000"], id="rates of 0"),
        pytest.param(changed(0, lambda a: a[:3000]), ["steps 20 to 6000", "1 to 3000"], id="steps beyond the rates"),
        pytest.param(changed(1, lambda a: a - 20), ["steps 0 to 5980"], id="steps from 0"),
        pytest.param(changed(1, lambda a: np.r_[a[:150], a[:150]]), ["20 after step 3000", "restart"], id="restart"),
        pytest.param(changed(1, lambda a: np.repeat(a[::2], 2)), ["merged"], id="two runs merged"),
        pytest.param(changed(1, lambda a: a + 0.5), ["not an integer"], id="fractional steps"),
        pytest.param(changed(2, lambda a: with_value(a, 99, np.inf)), ["inf at step 2000"], id="infinite loss"),
        pytest.param(changed(2, lambda a: with_value(a, 99, -0.1)), ["-0.1 at step 2000"], id="negative loss"),
        pytest.param(changed(2, lambda a: a[1:]), ["300 steps and 299 losses"], id="unequal lengths"),
        pytest.param(([COSINE], GOOD[1], GOOD[2]), ["of 1 runs"], id="one list of runs, two arrays"),
        pytest.param(([], [], []), ["learning_rates"], id="no runs"),
        pytest.param((COSINE[None], GOOD[1], GOOD[2]), ["(1, 6000)"], id="two dimensions"),
        pytest.param(("fast", GOOD[1], GOOD[2]), ["learning_rates", "numbers"], id="text"),
        pytest.param(
            ([COSINE, COSINE], [GOOD[1]] * 2, [GOOD[2], GOOD[2][::-1]]), ["Log 2", "fall"], id="the second log"
        ),
    ],
)
def test_unusable_logs_are_refused_in_one_line(log, words):
    with refuses(*words):
        fit_loss_law(*log)


def test_rates_of_a_prediction_are_checked(cosine_law):
    with refuses("update 2"):
        cosine_law.predict([PEAK, math.nan])
    with refuses("level", "1.5"):
        cosine_law.interval(COSINE, level=1.5)


# --- the least predicted loss ---


def test_the_optimum_is_stable_then_a_convex_decay_and_better_than_all_named_ones():
    law = fit_loss_law(*logged(DECAY_LAW, WSD))
    multipliers = minimize_predicted_loss(law, PEAK, STEPS, warmup_steps=200)
    assert multipliers.shape == (STEPS,)
    assert multipliers[0] == 0 and multipliers[100] == 0.5 and multipliers.max() == pytest.approx(1.0)
    decay = multipliers[200:]
    assert (np.diff(decay) <= EXACT_ROUNDING).all()
    stable = np.count_nonzero(decay > 0.98)
    assert 0.3 * STEPS < stable < 0.95 * STEPS
    middle = decay[stable + (len(decay) - stable) // 2]
    assert middle < 0.5 * decay[stable], "below the straight line from the peak to 0"
    best = last_loss(DECAY_LAW, PEAK * multipliers)
    assert all(best < last_loss(DECAY_LAW, rates) for rates in (COSINE, LINEAR, WSD, CONSTANT, TWO_STAGES))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param((0.0, 100), ["peak", "0.0"], id="no peak"),
        pytest.param((math.nan, 100), ["peak", "nan"], id="peak nan"),
        pytest.param((PEAK, 100, 99), ["warmup_steps", "99", "100"], id="all warm-up"),
        pytest.param((PEAK, 100, -1), ["warmup_steps", "-1"], id="negative warm-up"),
    ],
)
def test_an_impossible_optimum_is_refused(cosine_law, arguments, words):
    with refuses(*words):
        minimize_predicted_loss(cosine_law, *arguments)

"""The verdict on norms whose trouble is known, and each figure against what can be worked out by hand."""

import time

import numpy as np
import pytest

from hf_refined_schedule import GradientNorms
from hf_refined_schedule.schedules.health import NORM_CRITERIA, SHAPE_CRITERIA, check_health, check_shape

from .records import schedule_of
from .tiny import REPOSITORY
from .tolerances import CHECK_MILLION_SECONDS

STEPS = 1000
PROGRESS = np.arange(STEPS) / STEPS
SCATTER = np.exp(0.1 * np.random.default_rng(0).standard_normal(STEPS))
SPIKE_AT_THE_START = 1 + 5 * np.exp(-50 * PROGRESS)


def run(l1, l2=None, steps=None, planned=None, **fields):
    l1 = np.asarray(l1, dtype=float)
    steps = np.arange(1, len(l1) + 1) if steps is None else steps
    l2 = l1 * 0.01 if l2 is None else l2
    return GradientNorms(steps=steps, l1=l1, l2=l2, num_training_steps=planned or int(steps[-1]), **fields)


def checked(norms, **making):
    return check_health(norms, schedule_of(norms, "adam", **making))


VERDICTS = [
    ("a spike at the start asks for a warm-up, which linear can have", run(SPIKE_AT_THE_START * SCATTER), "sound", ""),
    ("norms that fall to a third", run((1 - 0.67 * PROGRESS) * SCATTER), "sound", ""),
    ("norms that fall tenfold put the peak near the end", run((1 - 0.9 * PROGRESS) * SCATTER), "doubtful", "late peak"),
    ("flat norms promise nothing", run(SCATTER), "sound", ""),
    ("norms that vanish", run(np.exp(-12 * PROGRESS) * SCATTER), "degenerate", "peak position"),
    ("norms that double", run((0.5 + 0.5 * PROGRESS) * SCATTER), "doubtful", "over the smallest"),
    ("one atypical first norm", run(np.concatenate(([0.4], SCATTER[1:]))), "doubtful", "sensitivity to the first norm"),
    ("thirty updates, in wider windows", run(np.linspace(3, 1, 30)), "sound", ""),
    ("no norm of the first nine updates of a thousand", run(np.linspace(3, 1, 100), steps=np.arange(10, 1001, 10)), "sound", ""),
    ("no norm of the first tenth", run(np.linspace(3, 1, 91), steps=np.arange(100, 1001, 10)), "doubtful", "missing first norms"),
    ("one norm in twenty not finite", run(SPIKE_AT_THE_START[:95], num_not_finite=5), "doubtful", "not finite"),
    ("measured after clipping", run(SPIKE_AT_THE_START * SCATTER, l2=np.ones(STEPS)), "doubtful", "equal L2 norms"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "norms", "verdict", "named"), VERDICTS, ids=[row[0] for row in VERDICTS])
def test_verdict(reason, norms, verdict, named):
    health = checked(norms)
    assert health.verdict == verdict, health
    assert bool(health.reasons) is bool(named)
    assert any(named in sentence for sentence in health.reasons) or not named
    promises = [sentence for sentence in health.reasons if "promised" in sentence]
    assert health.doubts == ([one for one in health.reasons if one not in promises] if verdict == "doubtful" else [])


def test_norms_that_rise_are_no_doubt_where_they_are_ignored():
    """What is left is flat, and asks for linear decay."""
    rising = run((0.5 + 0.5 * PROGRESS) * SCATTER)
    assert checked(rising).verdict == "doubtful"
    assert checked(rising, rising_norms="ignore").verdict == "sound"


def test_repeated_runs_are_judged_together():
    """The average of equal runs is the run; of a sound and a short one, the short one's window counts."""
    sound, short = run((1 - 0.67 * PROGRESS) * SCATTER), run(np.linspace(1, 0.33, 30))
    twice, once = checked([sound, sound]).findings, checked(sound).findings
    assert [finding.value for finding in twice] == pytest.approx([finding.value for finding in once])
    together = checked([sound, short], smoothing=0.1)
    assert together.verdict == "doubtful"
    assert value(together, "in a smoothing window") == 3
    assert value(checked([sound, short]), "in a smoothing window") == 5


def test_guesses_for_missing_first_norms():
    """Constant norms of which the first quarter is missing: a guess of 10 makes weights 1/10 there.

    Unsmoothed, T = 40: w = 1/10 for t < 10, then 1; tail sums 31 - ... The product at t = 10 is the maximum, 30 (of 41 norms).
    """
    missing = run(np.ones(30), steps=np.arange(11, 41))
    weights = [0.1] * 10 + [1.0] * 31
    products = [weight * sum(weights[t + 1 :]) for t, weight in enumerate(weights)]
    linear = [1 - t / 40 for t in range(41)]
    expected = np.sqrt(np.mean([(p / max(products) - q) ** 2 for p, q in zip(products, linear, strict=True)]))
    assert value(checked(missing, smoothing=0), "missing first norms") == pytest.approx(expected)
    assert value(checked(run(np.ones(40)), smoothing=0), "missing first norms") == 0.0


@pytest.mark.parametrize("number", [20, 30])
def test_a_smoothing_that_was_widened_is_compared_with_twice_of_it(number):
    """Few norms widen the default 0.1 to 4/20 or 4/30, so that a window holds five; half of that would hold three."""
    sparse = run(np.r_[3.0, 1.0, 3.0, np.ones(number - 3)], steps=np.arange(1, 50 * number + 1, 50))
    assert value(checked(sparse), "in a smoothing window") == 5
    twice = schedule_of(sparse, smoothing=8 / number).grid
    change = np.sqrt(np.mean((twice - schedule_of(sparse).grid) ** 2))
    assert change > 0
    assert value(checked(sparse), "half or double") == pytest.approx(change)


def value(health, words):
    (finding,) = [finding for finding in health.findings if words in finding.name]
    return finding.value


def test_figures_of_constant_norms():
    """Linear decay: the peak at 0, the mean 1/2, 0.05 ** 2 of the learning in the last 5 %, nothing gained or sensitive.

    Within 0.001: a cap of 5 % warm-up on linear decay is not quite the decay after a warm-up.
    """
    health = checked(run(np.ones(2000)))
    expected = {
        "peak position (fraction": 0.0, "mean multiplier": 0.5, "last 5 %": 0.05**2, "the first norm": 0.0, "half or double": 0.0,
        "over the smallest": 1.0, "over the median": 1.0, "recorded fraction": 1.0, "in a smoothing window": 201.0, "not finite": 0.0, "missing first norms": 0.0, "promise": 0.0,
    }  # fmt: skip
    for words, figure in expected.items():
        assert value(health, words) == pytest.approx(figure, abs=1e-3), words


def test_norms_that_fall_towards_zero():
    """exp(-4u): the median of the last tenth is exp(-3.8), that of all exp(-2)."""
    health = checked(run(np.exp(-4 * PROGRESS)))
    assert value(health, "over the median") == pytest.approx(np.exp(-1.8), rel=0.01)
    assert any("over the median" in sentence for sentence in health.doubts)


def test_clipped_share_is_told_and_is_no_doubt():
    """Norms are measured before the clip; of several runs the largest share is told, and none where no run says it."""
    often, seldom = run(SCATTER, clipped_share=0.75), run(SCATTER, clipped_share=0.25)
    (finding,) = [finding for finding in checked([seldom, often]).findings if "were clipped" in finding.name]
    assert finding.value == 0.75
    assert finding.ok
    assert not [finding for finding in checked(run(SCATTER)).findings if "were clipped" in finding.name]


def test_scale_does_not_matter():
    norms = SPIKE_AT_THE_START * SCATTER
    figures = [checked(run(norms * scale, l2=norms)).findings for scale in (1.0, 1e-6)]
    assert [one.value for one in figures[0]] == pytest.approx([other.value for other in figures[1]])


def test_shape_of_a_schedule_alone():
    assert check_shape(1 - np.linspace(0, 1, 101)) == []
    (late, *_) = check_shape(np.where(np.arange(101) == 95, 1.0, 0.01))
    assert late == "peak position (fraction of the run) is 0.95, more than 0.85"


@pytest.mark.parametrize("recorded", [2, 40])
def test_a_few_norms_of_a_very_long_run(recorded):
    norms = run(np.linspace(3, 1, recorded), planned=10**6)
    started = time.perf_counter()
    health = check_health(norms, schedule_of(norms, "adam", pilot=True))
    assert health.verdict in ("doubtful", "degenerate")
    assert {finding.name: finding for finding in health.findings}["recorded fraction of the run"].ok is False
    assert time.perf_counter() - started < CHECK_MILLION_SECONDS


def test_a_million_norms_are_checked_in_seconds():
    norms = run(np.linspace(3, 1, 10**6))
    started = time.perf_counter()
    checked(norms)
    assert time.perf_counter() - started < CHECK_MILLION_SECONDS


def test_the_smallest_norms_are_judged_without_a_warning():
    """5e-324 has no thousandth in float64."""
    norms = np.full(100, 5e-324)
    health = checked(run(np.ones(100), l2=norms))
    assert value(health, "equal L2 norms") == 1.0


def test_the_page_explains_every_figure():
    page = (REPOSITORY / "docs" / "check.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    explained = {row[0]: row[1:] for row in rows if row[0] not in ("figure", "---")}
    assert list(explained) == [criterion.name for criterion in (*SHAPE_CRITERIA, *NORM_CRITERIA)]
    for criterion in (*SHAPE_CRITERIA, *NORM_CRITERIA):
        limit, meaning, reason = explained[criterion.name]
        assert (meaning, reason) == (criterion.meaning or "nothing by itself", criterion.reason)
        assert limit == (
            "none"
            if criterion.at_most is None and criterion.at_least is None
            else f"at least {criterion.at_least:g}"
            if criterion.at_most is None
            else f"at most {criterion.at_most:g}"
        )


def test_a_figure_beyond_its_limit_says_what_it_means():
    (bad,) = [finding for finding in checked(run(np.linspace(1, 3, 100))).findings if not finding.ok]
    assert "the rule of the paper anneals too early" in bad.meaning

"""The track record that `check` prints is that of the committed results."""

import re

import pandas as pd

from hf_refined_schedule.schedules.track_record import (
    BOUNDED_WARMUP,
    BOUNDED_WARMUP_WORSE_IN,
    PROMISE_AND_GAIN,
    RECORD_OF_RISING_NORMS,
    REFINED,
    REPORT,
    Outcomes,
)

from .tiny import REPOSITORY

FOLDER = REPOSITORY / "results" / "problem_suite"


def test_the_record_of_bounded_warmup():
    (row,) = pd.read_csv(FOLDER / "rule.csv").to_dict("records")
    assert row["rule"] == "between two warm-ups"
    assert Outcomes(row["better"], row["undecided"], row["worse"]) == BOUNDED_WARMUP
    assert BOUNDED_WARMUP.total == row["problems"]
    assert "; ".join(BOUNDED_WARMUP_WORSE_IN) == row["worse in"]


def test_the_record_of_each_verdict():
    advised = pd.read_csv(FOLDER / "advice.csv")
    counted = {
        verdict: Outcomes(*((group["refined, reference 1"] == outcome).sum() for outcome in Outcomes._fields))
        for verdict, group in advised.drop_duplicates(["check now", "problem"]).groupby("check now")
    }
    assert counted == REFINED


def test_the_promise_and_the_gain():
    report = (REPOSITORY / REPORT).read_text()
    assert f"rank correlation of {PROMISE_AND_GAIN:+.2f} " in " ".join(report.split())


def test_the_page_about_schedules_states_the_record_of_the_suite():
    report = (REPOSITORY / REPORT).read_text()
    (counts,) = re.findall(
        r"^- \*between two warm-ups\* \(`bounded_warmup`\): (\d+) better, (\d+) worse of 7 .*; (\d+) better, (\d+) worse of 7 ",
        report,
        re.M,
    )
    assert counts == ("1", "0", "0", "0")
    page = " ".join((REPOSITORY / "docs" / "which-schedule.md").read_text().split())
    assert "it was never worse, and better once in 14" in page


def test_what_rising_norms_were_worth():
    assert "(results/studies.md)" in RECORD_OF_RISING_NORMS
    for study in ("from_scratch_300", "from_scratch_1200"):
        scratch = pd.read_csv(REPOSITORY / "results" / study / "tables.csv")
        refined = scratch[scratch["schedule"].str.contains("norms ignored|refined|between")]
        long_warmup = refined[refined["compared with"] == "linear, 20 % warm-up"]
        assert set(long_warmup["verdict"]) == {"worse"}
    lora = pd.read_csv(REPOSITORY / "results" / "trained_start_lora" / "tables.csv")
    linear = lora[
        (lora["compared with"] == "linear") & lora["schedule"].isin(["between two warm-ups", "rising norms ignored"])
    ]
    assert set(linear["verdict"]) == {"no worse"}

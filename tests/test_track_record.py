"""The track record that `check` prints is that of the committed results."""

import json
import re

import pandas as pd
from experiments.json_file import read_json
from publish_results import TRACK_RECORD, TRACK_RECORD_OF_THE_PACKAGE

from hf_refined_schedule.schedules.track_record import (
    RECORD_OF_RISING_NORMS,
    REPORT,
    Outcomes,
    parse_track_record,
    read_track_record,
)

from .refusals import refuses
from .tiny import REPOSITORY


def test_it_is_that_of_the_results():
    written = read_json(REPOSITORY / TRACK_RECORD)
    assert read_json(REPOSITORY / TRACK_RECORD_OF_THE_PACKAGE) == written
    assert Outcomes(**written["bounded_warmup"]) == read_track_record().bounded_warmup


def test_a_record_that_lacks_a_count_is_refused():
    text = (REPOSITORY / TRACK_RECORD).read_text()
    record = json.loads(text)
    assert parse_track_record(text) == read_track_record()
    del record["refined"]["degenerate"]
    with refuses("The track record is incomplete: 'degenerate'"):
        parse_track_record(json.dumps(record))


def test_the_record_of_bounded_warmup_is_in_the_report():
    record = read_track_record()
    better, undecided, worse = record.bounded_warmup
    report = " ".join((REPOSITORY / REPORT).read_text().split())
    assert (
        f"Over all {record.bounded_warmup.total} problems and studies, *between two warm-ups* is better than linear decay with the best warm-up in "
        f"{better}, undecided in {undecided}, and worse in {worse}"
    ) in report
    for name in record.bounded_warmup_worse_in:
        assert f"{name}, by" in report


def test_the_record_of_each_verdict_counts_a_problem_once():
    advised = pd.read_csv(REPOSITORY / TRACK_RECORD.parent / "advice.csv")
    outcomes = {(row["check now"], row["problem"]): row["refined, reference 1"] for row in advised.to_dict("records")}
    for verdict, counted in read_track_record().refined.items():
        of_verdict = [outcome for (said, _), outcome in outcomes.items() if said == verdict]
        assert counted == Outcomes(*(of_verdict.count(outcome) for outcome in Outcomes._fields))


def test_the_promise_and_the_gain():
    report = (REPOSITORY / REPORT).read_text()
    assert f"without warm-up, have one of {read_track_record().promise_and_gain:+.2f}." in " ".join(report.split())


def test_the_page_about_schedules_states_the_record_of_the_suite():
    report = (REPOSITORY / REPORT).read_text()
    (counts,) = re.findall(
        r"^- \*between two warm-ups\* \(`bounded_warmup`\): (\d+) better, (\d+) worse of 7 [^;]*; (\d+) better, (\d+) worse of 7 ",
        report,
        re.M,
    )
    assert counts == ("1", "0", "0", "0")
    page = " ".join((REPOSITORY / "docs" / "which-schedule.md").read_text().split())
    assert "it was better once in 14 and never significantly worse" in page


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

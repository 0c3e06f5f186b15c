"""Report studies by results/protocol.md from the results that they left, with tables and pictures.

    python scripts/report_studies.py runs/study

writes runs/study.md, and its pictures and tables.csv into the folder runs/study. `--summary FILE.md` also writes one table of
all studies, and `--sizes FILE.md` the differences over the size of the model. A study without a test seed of both references and of
both refined schedules is left out, with a line.
"""

import argparse
import sys
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.size_report import write_size_report
from experiments.study_report import summary_table, write_study_report
from experiments.study_results import read_study

SUMMARY_NOTE = (
    "Differences in final loss with 95 % intervals, by [the protocol](protocol.md), at the peak that is best for each schedule; a "
    "negative one is better. The first line of a cell compares with linear decay, the second with linear decay after the best "
    "of five warm-ups."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with results.jsonl")
    parser.add_argument("--summary", type=Path, metavar="FILE.md", help="a table with a row for each study")
    parser.add_argument("--sizes", type=Path, metavar="FILE.md", help="the differences over the size of the model")
    options = parser.parse_args()
    try:
        studies = {folder: read_study(folder) for folder in options.folders}
        reported = {folder: study for folder, study in studies.items() if not study.is_under_way}
        for folder in studies:
            if folder not in reported:
                print(f"{folder} has too few test runs yet; run the study again to continue it.", file=sys.stderr)
        for folder, study in reported.items():
            output = folder.resolve().with_name(f"{folder.resolve().name}.md")
            print(write_study_report(study, folder, output))
            print(f"\nThe report: {output}\n")
        if options.summary is not None and reported:
            table = summary_table(reported)
            options.summary.write_text(f"# All studies\n\n{SUMMARY_NOTE}\n\n{table}\n", encoding="utf-8")
        if options.sizes is not None:
            write_size_report(reported, options.sizes)
    except (ValueError, OSError) as error:
        exit_with_error("report_studies.py", error)


if __name__ == "__main__":
    main()

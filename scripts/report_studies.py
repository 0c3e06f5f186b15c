"""Report studies by results/protocol.md from the results that they left, with tables and pictures.

    python scripts/report_studies.py runs/study

writes runs/study.md, and its pictures and tables.csv into the folder runs/study. `--summary FILE.md` also writes one table of
all studies.
"""

import argparse
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.study_report import read_study, summary_table, write_study_report

SUMMARY_NOTE = (
    "Differences in final loss with 95 % intervals, by [the protocol](protocol.md), at the peak that is best for each schedule; a "
    "negative one is better. The first row of a study compares with linear decay, the second with linear decay after the best "
    "of five warm-ups."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with results.jsonl")
    parser.add_argument("--summary", type=Path, metavar="FILE.md", help="a table with two rows for each study")
    options = parser.parse_args()
    try:
        for folder in options.folders:
            output = folder.resolve().with_name(f"{folder.resolve().name}.md")
            print(write_study_report(folder, output, read_study(folder).label))
            print(f"\nThe report: {output}\n")
        if options.summary is not None:
            options.summary.write_text(f"# All studies\n\n{SUMMARY_NOTE}\n\n{summary_table(options.folders)}\n")
    except (ValueError, OSError) as error:
        exit_with_error("report_studies.py", error)


if __name__ == "__main__":
    main()

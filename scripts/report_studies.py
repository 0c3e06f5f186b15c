"""Report studies by results/protocol.md from the results that they left, with tables and pictures.

    python scripts/report_studies.py runs/study

writes runs/study.md, and its pictures and tables.csv into the folder runs/study. `--summary FILE.md` also writes one table of
all studies. A study that is under way is left out, with a line.
"""

import argparse
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.study_folder import report_file
from experiments.study_report import link_to_protocol, summary_table, write_study_report
from experiments.study_results import read_studies

SUMMARY_NOTE = (
    "Differences in final loss with 95 % intervals, by {protocol}, at the peak that is best for each schedule; a "
    "negative one is better. The first line of a cell compares with linear decay, the second with linear decay after the best "
    "of five warm-ups. Studies that are marked *reduced* tried only the best and the longest warm-up at several peaks."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with results.jsonl")
    parser.add_argument("--summary", type=Path, metavar="FILE.md", help="a table with a row for each study")
    options = parser.parse_args()
    try:
        studies = read_studies(options.folders)
        for folder, study in studies.items():
            output = report_file(folder)
            print(write_study_report(study, folder, output))
            print(f"\nThe report: {output}\n")
        if options.summary is not None and studies:
            table = summary_table(studies)
            note = SUMMARY_NOTE.format(protocol=link_to_protocol(options.summary))
            options.summary.write_text(f"# All studies\n\n{note}\n\n{table}\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        exit_with_error("report_studies.py", error)


if __name__ == "__main__":
    main()

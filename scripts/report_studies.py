"""Report studies by results/protocol.md from the results that they left, with tables and pictures.

    python scripts/report_studies.py runs/study

writes runs/study.md, and its pictures and tables.csv into the folder runs/study.
"""

import argparse
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.study_report import read_study, write_study_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with results.jsonl")
    options = parser.parse_args()
    try:
        for folder in options.folders:
            output = folder.resolve().with_name(f"{folder.resolve().name}.md")
            print(write_study_report(folder, output, read_study(folder).label))
            print(f"\nThe report: {output}\n")
    except (ValueError, OSError) as error:
        exit_with_error("report_studies.py", error)


if __name__ == "__main__":
    main()

"""Report how the differences between schedules change with the size of the model.

    python scripts/report_sizes.py runs/size_* --output runs/sizes.md

The folders are those of studies by results/protocol.md, one for each size. The picture has the name of the report with the suffix
.png. A study that is under way is left out, with a line.
"""

import argparse
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.size_report import write_size_report
from experiments.study_results import read_studies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with results.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.md", help="the report")
    options = parser.parse_args()
    try:
        write_size_report(read_studies(options.folders), options.output)
    except (ValueError, OSError) as error:
        exit_with_error("report_sizes.py", error)


if __name__ == "__main__":
    main()

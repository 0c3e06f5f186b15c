"""Report a comparison of schedules from the results that it left, with tables and pictures.

    python scripts/report_comparison.py runs/comparison

writes runs/comparison.md, and the pictures and tables.csv into the folder runs/comparison.
"""

import argparse
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with results.jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="the report (default: FOLDER.md)")
    parser.add_argument("--title", default="Comparison of learning-rate schedules")
    options = parser.parse_args()
    folder = options.folder.resolve()
    output = options.output or folder.with_name(f"{folder.name}.md")
    try:
        if output.suffix != ".md":
            raise ValueError(f"--output is {output}, but must be the file of the report; end it in .md.")
        print(write_report(options.folder, output, options.title))
    except (ValueError, OSError) as error:
        exit_with_error("report_comparison.py", error)
    print(f"\nThe report: {output}")


if __name__ == "__main__":
    main()

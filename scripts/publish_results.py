"""Copy results to where users read them: tables and lists into README.md, and the track record of `check` into the package.

    python scripts/publish_results.py

README.md marks each copy: `<!-- the first table of results/studies.md -->` before it and `<!-- end -->` after it.
"""

import re
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.json_file import replace_text

from hf_refined_schedule.schedules.track_record import parse_track_record

REPOSITORY = Path(__file__).resolve().parents[1]
TRACK_RECORD = Path("results/problem_suite/track_record.json")
TRACK_RECORD_OF_THE_PACKAGE = Path("hf_refined_schedule/schedules/track_record.json")

COPY = re.compile(r"(<!-- the first (table|list) of (\S+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
LINES = {"table": re.compile(r"(?:^\|.*\n)+", re.MULTILINE), "list": re.compile(r"(?:^- .*\n)+", re.MULTILINE)}


def with_results(text: str, folder: Path) -> str:
    """A Markdown text with all of its marked copies made again.

    Args:
        text: the text.
        folder: the folder that the paths in the marks start from.

    Raises:
        ValueError: if a file holds no table, or no list, where a mark names one.
        OSError: if a file cannot be read.
    """

    def copy(mark: re.Match[str]) -> str:
        before, kind, path, after = mark.groups()
        found = LINES[kind].search((folder / path).read_text(encoding="utf-8"))
        if found is None:
            raise ValueError(f"{path} has no {kind}; write the report again.")
        return f"{before}\n{found[0]}{after}"

    return COPY.sub(copy, text)


def main() -> None:
    try:
        readme = REPOSITORY / "README.md"
        replace_text(readme, with_results(readme.read_text(encoding="utf-8"), REPOSITORY))
        record = (REPOSITORY / TRACK_RECORD).read_text(encoding="utf-8")
        parse_track_record(record)
        replace_text(REPOSITORY / TRACK_RECORD_OF_THE_PACKAGE, record)
    except (ValueError, OSError) as error:
        exit_with_error("publish_results.py", error)


if __name__ == "__main__":
    main()

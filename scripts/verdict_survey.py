"""What `check` says about each log in a folder.

    python scripts/verdict_survey.py FOLDER

FOLDER holds records of runs, each a file that `load_norms` reads. The report, results/verdicts.md, has the verdicts and
the reasons, but nothing of the logs themselves.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from experiments.arguments import exit_with_error
from experiments.markdown_tables import NOT_AVAILABLE, markdown_table
from experiments.provenance import collect_provenance, render_provenance
from tqdm import tqdm

from hf_refined_schedule.schedules.refining import refine_or_pilot

SCRIPT = "verdict_survey.py"

RESULTS = Path(__file__).resolve().parent.parent / "results"


def survey(path: Path) -> dict[str, str]:
    """A row of the table: the verdict on a log, or why it was refused."""
    try:
        refinement, _ = refine_or_pilot(path)
    except ValueError as error:
        reason = str(error).replace(str(path), path.name)
        return {"log": path.name, "norms": NOT_AVAILABLE, "verdict": "refused", "because": reason}
    health = refinement.health
    assert health is not None
    return {
        "log": path.name,
        "norms": str(sum(len(run.steps) for run in refinement.runs)),
        "verdict": health.verdict,
        "because": "; ".join(health.reasons) or NOT_AVAILABLE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="records of runs: trainer_state.json, CSV, JSON Lines")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "verdicts.md", help="the report (default: %(default)s)"
    )
    parser.add_argument("--source", default="as given.", help="a sentence for the report: where the logs come from")
    options = parser.parse_args()
    started = time.monotonic()
    paths = sorted(path for path in options.folder.iterdir() if path.is_file()) if options.folder.is_dir() else []
    if not paths:
        exit_with_error(
            SCRIPT, ValueError(f"{options.folder} holds no log; give a folder of trainer_state.json or other logs.")
        )
    rows = pd.DataFrame([survey(path) for path in tqdm(paths, unit="log")])
    counts = rows.groupby("verdict").size().rename("logs").reset_index().sort_values("logs", ascending=False)
    parts = [
        "# Verdicts on logs of real runs",
        f"What `hf-refined-schedule check` says about {len(rows)} logs. Their source: {options.source} A log of an unfinished run "
        "counts as a pilot. No outcome of a second run is known for them.",
        markdown_table(counts.astype(str)),
        markdown_table(rows),
        render_provenance(collect_provenance(SCRIPT, time.monotonic() - started)),
    ]
    options.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(markdown_table(counts.astype(str)), file=sys.stdout)


if __name__ == "__main__":
    main()

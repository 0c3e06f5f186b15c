"""Draw the method in two pictures: synthetic norms and their schedules; recorded norms, smoothed, refined and fitted.

    python scripts/figures.py
    python scripts/figures.py runs/baseline trainer_state.json --optimizer adam --output_dir runs/figures

By default the second picture shows our own runs in results/. The script writes OUTPUT_DIR/synthetic.png, OUTPUT_DIR/recorded.png
and OUTPUT_DIR.md, which has a table for each picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from experiments.arguments import exit_with_error
from experiments.method_pictures import (
    NUM_STEPS,
    RefinedRun,
    draw_recorded,
    draw_synthetic,
    refine_recorded,
    refine_synthetic,
    shape_table,
)
from experiments.provenance import command_line
from experiments.study_folder import BASELINE_FILE

from hf_refined_schedule.norms.gradient_norms import OptimizerFamily

SCRIPT = "figures.py"

RESULTS = Path(__file__).resolve().parent.parent / "results"

OWN_RUNS = {
    "fine-tuning": RESULTS / "finetune" / BASELINE_FILE,
    "from scratch": RESULTS / "scratch" / BASELINE_FILE,
    "LoRA": RESULTS / "lora" / BASELINE_FILE,
}


def write_report(output_dir: Path, runs: Sequence[RefinedRun], command: str) -> str:
    """Write both pictures, and the report beside their folder; returns the report."""
    synthetic = refine_synthetic()
    output_dir.mkdir(parents=True, exist_ok=True)
    draw_synthetic(output_dir / "synthetic.png", synthetic)
    draw_recorded(output_dir / "recorded.png", runs)
    folder = output_dir.name
    report = "\n\n".join(
        [
            "# The method in pictures",
            f"Synthetic norms of {NUM_STEPS} updates, and the schedules refined from them:",
            f"![Norms and schedules]({folder}/synthetic.png)",
            shape_table(run for refined in synthetic.values() for run in refined),
            "Recorded norms and smoothed ones; the refined schedule; and the polynomial that is closest to it, with a power "
            "from 0.1 to 10:",
            f"![Recorded norms and schedules]({folder}/recorded.png)",
            shape_table(runs),
            f"```bash\n{command}\n```",
        ]
    )
    output_dir.with_name(f"{folder}.md").write_text(report + "\n", encoding="utf-8")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="recorded runs in any format with norms (default: our own)")
    parser.add_argument("--optimizer", choices=get_args(OptimizerFamily), help="for sources that do not name it")
    parser.add_argument("--output_dir", type=Path, default=Path("results/figures"))
    options = parser.parse_args()
    try:
        sources = {source: source for source in options.sources} or OWN_RUNS
        runs = [refine_recorded(name, source, options.optimizer) for name, source in sources.items()]
        print(write_report(options.output_dir.resolve(), runs, command_line(SCRIPT)))
    except (ValueError, OSError) as error:
        exit_with_error(SCRIPT, error)


if __name__ == "__main__":
    main()

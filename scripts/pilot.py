"""Measure how far the schedule of a pilot is from the schedule of the full run.

    python scripts/pilot.py --output_dir results/pilot

A pilot stands in for a full run that is too expensive to repeat. It is the first part of a run, as `hf-refined-schedule refine
--pilot` accepts it; a complete shorter run; or a complete run of a smaller model. All runs train the small models of
scripts/compare_finetuning.py with linear decay. A pilot has the seed and the peak learning rate of its full run. The script
measures the distance of schedules; it trains no model with a pilot's schedule.

The report is OUTPUT_DIR.md. The recorded L1 norms of every run (norms.csv), from which the report is made, and the picture are in
OUTPUT_DIR. A rerun skips the runs whose norms it finds complete. `--report_only` makes the report from norms.csv and trains
nothing. The default takes about 10 minutes on two cores.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.arguments import exit_with_error, fraction_of_run
from experiments.cells import Cell
from experiments.fine_tuning import Setting, TrainingOptions, prepare_setting, run_cell
from experiments.grid import compared_seeds, refuse_several_processes, run_each
from experiments.json_file import read_json
from experiments.language_modeling import ModelArguments
from experiments.pilots import (
    FULL,
    LINEAR,
    OTHER_SEED,
    RULES,
    Row,
    add_derived_pilots,
    column_name,
    compare_pilots,
    conclusion,
    line_styles,
    pilot_table,
    read_norms,
    save_pilots_picture,
    short_run_name,
    smaller_model_name,
    write_norms,
)
from experiments.provenance import ProvenanceFile, render_provenance
from experiments.study_folder import PROVENANCE_FILE, only_run_in
from tqdm import tqdm

from hf_refined_schedule import load_norms
from hf_refined_schedule.norms.gradient_norms import GradientNorms
from hf_refined_schedule.theory.refinement import RisingNorms

SCRIPT = "pilot.py"

NORMS_FILE = "norms.csv"

PEAKS = {"finetune": 5e-3, "scratch": 2e-3}
"""The peak learning rate of a regime: linear decay's best in results/finetune.md and results/scratch.md."""

SMALLER_MODELS = {
    "half as wide": "n_embd=48,n_layer=2,n_head=4,n_positions=64",
    "half as wide, half the layers": "n_embd=48,n_layer=1,n_head=4,n_positions=64",
}
"""Changes to the config; the full run's model has 96 dimensions and 2 layers."""


@dataclass(frozen=True)
class Run:
    """One recorded run with linear decay.

    Args:
        regime: `"finetune"` or `"scratch"`.
        name: the run in the report.
        setting: the start model, the text and the folder.
        cell: the peak, the seed and the number of updates.
    """

    regime: str
    name: str
    setting: Setting
    cell: Cell

    @property
    def norms_file(self) -> Path:
        """The file that the run records its norms to."""
        return self.setting.norms_file(self.cell)

    @property
    def is_recorded(self) -> bool:
        """Whether the norms of all updates are there."""
        try:
            norms = load_norms(self.norms_file)
        except ValueError:
            return False
        return int(norms.steps[-1]) == norms.num_training_steps == self.cell.steps


def plan_runs(options: argparse.Namespace, regime: str) -> list[Run]:
    """The runs of a regime. Their models are pretrained and their text is tokenized here."""
    training = TrainingOptions(
        output_dir=str(options.output_dir / "cells" / f"{regime}_{options.pretrain_steps}"),
        regime=regime,
        num_workers=options.num_workers,
        **({} if regime == "scratch" else {"pretrain_steps": options.pretrain_steps}),
    )
    own_size = prepare_setting(ModelArguments(), None, training)
    kinds = [(FULL, own_size, options.steps)]
    kinds += [(short_run_name(fraction), own_size, round(fraction * options.steps)) for fraction in options.lengths]
    kinds += [
        (smaller_model_name(model), prepare_setting(ModelArguments(), None, training, size), options.steps)
        for model, size in SMALLER_MODELS.items()
        if model in options.smaller_models
    ]
    return [
        Run(regime, name, setting, Cell(setting.label, "linear", PEAKS[regime], seed, steps, role="pilot"))
        for name, setting, steps in kinds
        for seed in compared_seeds(options.num_seeds)
    ]


def train(run: Run) -> None:
    """Train a run, which records its norms."""
    run_cell(run.setting, run.cell)


def record_missing(runs: Sequence[Run], num_workers: int, after_each: Callable[[], object]) -> None:
    """Train the runs whose norms are not complete, the longest first, and call `after_each` after each."""
    missing = sorted((run for run in runs if not run.is_recorded), key=lambda run: -run.cell.steps)
    with tqdm(total=len(runs), initial=len(runs) - len(missing), desc="recording", unit="run") as progress:
        for _ in run_each(train, missing, num_workers):
            progress.update()
            after_each()


def recorded_sources(
    options: argparse.Namespace, regime: str, norms: Mapping[str, GradientNorms]
) -> dict[str, list[GradientNorms]]:
    """The norms of every seed of a regime, by the name of the run.

    Raises:
        ValueError: if a run is missing.
    """
    names = [FULL, *map(short_run_name, options.lengths), *map(smaller_model_name, options.smaller_models)]
    sources = {}
    for name in names:
        columns = [column_name(regime, name, seed) for seed in compared_seeds(options.num_seeds)]
        for column in columns:
            if column not in norms:
                raise ValueError(f"{NORMS_FILE} has no column {column!r}; run the pilots without --report_only first.")
        sources[name] = [norms[column] for column in columns]
    return sources


def introduction(options: argparse.Namespace) -> str:
    """The paragraphs on what was measured."""
    peaks = " and ".join(f"{PEAKS[regime]:g} ({regime})" for regime in options.regimes)
    return (
        f"Full runs are {options.steps} updates of a small GPT-2 (96 dimensions, 2 layers) with AdamW and linear decay from the "
        f"peak {peaks}, with {options.num_seeds} seeds. Pilots have the peak and the seed of their full run. A first part and a "
        "shorter run start with the weights and the batches of the full run, so their first norm is the same. A smaller model has "
        "weights of its own, and in finetune its own pretraining. The schedule of a shorter run is stretched to the full length; "
        "in another row, the shorter run counts as the first updates of the full one. After a first part, its last smoothed norm "
        "is repeated to the end.\n\n"
        "RMSE is the distance of a schedule from that of the full run with the same seed, over the progress of the run: the mean "
        f'over seeds [smallest, largest]. Two rows put it in proportion. "{OTHER_SEED}" is the distance between full runs. '
        f"{LINEAR.capitalize()} needs no run at all, so a pilot that is not closer than {LINEAR} is useless. The position of the "
        "peak, the mean multiplier and the verdict of `hf-refined-schedule check` describe the schedules of the row; "
        f'"{OTHER_SEED}" shows those of the full runs. No run was trained with a pilot\'s schedule.'
    )


def write_report(options: argparse.Namespace, norms: Mapping[str, GradientNorms], provenance: dict[str, Any]) -> str:
    """Write the report and its picture; returns the report."""
    folder = options.output_dir
    styles = line_styles(options.parts, options.lengths, options.smaller_models)
    comparisons: dict[tuple[str, RisingNorms], list[Row]] = {}
    for regime in options.regimes:
        sources = add_derived_pilots(recorded_sources(options, regime, norms), options.parts, options.lengths)
        ordered = {name: sources[name] for name in (FULL, *styles)}
        for rule in RULES:
            comparisons[regime, rule] = compare_pilots(ordered, rule)
    parts = ["# Pilots: the distance of their schedule from that of the full run", introduction(options)]
    for (regime, rule), rows in comparisons.items():
        parts += [f"## {regime}: {RULES[rule]}", pilot_table(rows), conclusion(rows)]
    caption = "The schedules; pilots are those of the first seed"
    parts += [f"![{caption}]({folder.name}/schedules.png)", f"*{caption}.*", render_provenance(provenance)]
    report = "\n\n".join(parts) + "\n"
    save_pilots_picture(folder / "schedules.png", comparisons, styles)
    folder.with_name(f"{folder.name}.md").write_text(report, encoding="utf-8")
    return report


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("results/pilot"))
    parser.add_argument("--regimes", nargs="+", choices=tuple(PEAKS), default=list(PEAKS), help="what is trained")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer updates of a full run")
    parser.add_argument("--num_seeds", type=int, default=3, help="the number of seeds: 1, 2, ...; at least 2")
    fractions: dict[str, Any] = {"nargs": "+", "type": fraction_of_run, "metavar": "FRACTION"}
    parser.add_argument("--parts", default=[0.1, 0.25, 0.5], help="first parts of the full run", **fractions)
    parser.add_argument("--lengths", default=[0.1, 0.25], help="lengths of shorter runs", **fractions)
    parser.add_argument(
        "--smaller_models", nargs="*", choices=tuple(SMALLER_MODELS), default=list(SMALLER_MODELS), metavar="NAME",
        help=f"any of: {'; '.join(SMALLER_MODELS)}; all by default",
    )  # fmt: skip
    parser.add_argument("--pretrain_steps", type=int, default=400, help="updates of the pretraining for finetune")
    parser.add_argument(
        "--num_workers", type=int, default=2, help="runs that train at the same time and share the cores"
    )
    parser.add_argument("--report_only", action="store_true", help="make the report from norms.csv; train nothing")
    return parser


def check_options(options: argparse.Namespace) -> None:
    if options.num_seeds < 2:
        raise ValueError(
            f"--num_seeds is {options.num_seeds}, but schedules of other seeds are compared; pass at least 2."
        )
    if min(*options.parts, *options.lengths) * options.steps < 2:
        raise ValueError(f"The shortest pilot of --steps {options.steps} has fewer than 2 updates; pass more steps.")


def record_all(options: argparse.Namespace) -> None:
    """Train the missing runs, and write norms.csv and the provenance."""
    with only_run_in(options.output_dir), ProvenanceFile(options.output_dir, SCRIPT) as provenance:
        runs = [run for regime in options.regimes for run in plan_runs(options, regime)]
        record_missing(runs, options.num_workers, provenance.write)
    columns = {
        column_name(run.regime, run.name, run.cell.seed): load_norms(run.norms_file).at_every_step("l1") for run in runs
    }
    write_norms(options.output_dir / NORMS_FILE, columns)


def main() -> None:
    try:
        refuse_several_processes()
        options = make_parser().parse_args()
        check_options(options)
        if not options.report_only:
            record_all(options)
        provenance = read_json(options.output_dir / PROVENANCE_FILE)
        print(write_report(options, read_norms(options.output_dir / NORMS_FILE), provenance))
    except (ValueError, OSError) as error:
        exit_with_error(SCRIPT, error)


if __name__ == "__main__":
    main()

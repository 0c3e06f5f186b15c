"""Compare learning-rate schedules for language models: schedule x peak learning rate x seed, in pairs.

    python scripts/compare_finetuning.py --output_dir runs/comparison
    python scripts/report_comparison.py runs/comparison

The default is a small fine-tuning grid that takes less than ten minutes on two cores. Its model is pretrained by the script on
CPython's source, and all its text ships with Python. results/finetune.md gives the commands and the time of the large grid.
`--regime lora` (which needs peft) and `--regime scratch` train in other ways. `--model_name_or_path` and the text options of
scripts/run_clm.py select other models and data. Every cell is one run of `RefinedScheduleTrainer`. Cells with the same seed
start with the same weights and see the same batches, so schedules are compared in pairs.

The refined schedule is made from one more run: linear decay with a seed that is not compared (seed 0), at that seed's best peak.
The grid compares a schedule that the package calls doubtful or degenerate, too. To see the verdict, run
`hf-refined-schedule check` on the baseline.jsonl that the grid writes.

Each result is appended to results.jsonl as its cell ends. A rerun skips the cells in that file, so a killed grid continues where
it stopped. `accelerate launch` trains each cell on several processes.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from experiments.arguments import exit_with_error
from experiments.cells import BASELINE, Cell
from experiments.fine_tuning import (
    Setting,
    TrainingOptions,
    check_positive,
    describe_study,
    parse_options,
    prepare_setting,
    run_cell,
)
from experiments.grid import (
    BASELINE_SEED,
    add_sampled_schedules,
    baseline_cells,
    best_baseline,
    compared_cells,
    equal_compute_cells,
    keep_baseline,
    run_missing,
    tune_compared,
)
from experiments.language_modeling import DataArguments, ModelArguments
from experiments.provenance import ProvenanceFile
from experiments.results_file import ResultsFile
from experiments.schedules_compared import SCHEDULES, sample_multipliers
from experiments.study_folder import BASELINE_FILE, keep_setting, only_run_in
from experiments.variants import schedule_and_source, variant_names, write_variants

SCRIPT = "compare_finetuning.py"

DEFAULT_SCHEDULES = ("linear", "linear+warmup", "cosine+warmup", "wsd", "refined", "refined+warmup")

VARIANTS = "variants"
"""The name on the command line for all variants of the refined schedule."""


@dataclass
class GridOptions:
    """The grid."""

    schedules: list[str] = field(
        default_factory=lambda: list(DEFAULT_SCHEDULES),
        metadata={
            "help": f"The schedules: {', '.join(SCHEDULES)}; or variants, which run at linear's and refined's best peak."
        },
    )
    peaks: list[float] = field(
        default_factory=lambda: [5e-3, 1e-2, 2e-2],
        metadata={"help": "The peak learning rates; include 4 times linear's best."},
    )
    num_seeds: int = field(
        default=3, metadata={"help": "The number of compared seeds: 1, 2, ... (seed 0 makes the refined schedule)."}
    )
    max_steps: int = field(default=300, metadata={"help": "The number of optimizer updates of a cell."})
    equal_compute: bool = field(
        default=False, metadata={"help": "Also run linear decay with twice the steps, and on a finer grid of peaks."}
    )
    sizes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Sizes of the new model to compare at, each as config overrides: n_embd=64,n_layer=2,n_head=2."
        },
    )

    def __post_init__(self) -> None:
        known = [*SCHEDULES, VARIANTS]
        for name in self.schedules:
            if name not in known:
                raise ValueError(f"--schedules has {name!r}, but must be of {', '.join(known)}.")
        if self.needs_baseline and "linear" not in self.schedules:
            raise ValueError("Refined schedules are made from a run of linear decay; add linear to --schedules.")
        for name in ("num_seeds", "max_steps"):
            check_positive(self, name)
        if not self.peaks or min(self.peaks) <= 0:
            raise ValueError(f"--peaks is {self.peaks}, but must be positive learning rates.")

    @property
    def needs_baseline(self) -> bool:
        """Whether a schedule is made from the norms of a baseline run."""
        return any(name == VARIANTS or SCHEDULES[name].is_refined for name in self.schedules)


class Comparison:
    """The grid of one setting: the baseline, the compared schedules, the equal-compute runs, and the variants."""

    def __init__(
        self, setting: Setting, options: GridOptions, num_workers: int, after_each: Callable[[], object]
    ) -> None:
        self.setting = setting
        self.options = options
        self.folder = Path(setting.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = ResultsFile(self.folder)
        self.num_workers = num_workers
        self.after_each = after_each

    def run(self) -> None:
        """Run the cells that have no result yet."""
        options, label = self.options, self.setting.label
        names = [name for name in options.schedules if name != VARIANTS]
        if options.needs_baseline:
            self._run_cells(baseline_cells(label, options.peaks, options.max_steps), "baseline")
            baseline_file = self.folder / BASELINE_FILE
            keep_baseline(self.results, label, options.max_steps, baseline_file, self._copy_norms)
        grid = (options.peaks, options.num_seeds, options.max_steps)
        cells = compared_cells(label, names, *grid)
        if options.equal_compute:
            cells += equal_compute_cells(label, *grid)
        self._run_cells(cells, "grid")
        if VARIANTS in options.schedules:
            names += self._run_variants()
        self._sample_schedules(names)

    def _run_variants(self) -> list[str]:
        """Run the variants at the best peaks of linear decay and the refined schedule; returns their names."""
        options, label = self.options, self.setting.label
        peak = best_baseline(self.results, label)
        refined_run = Cell(label, "refined", peak, BASELINE_SEED, options.max_steps, role=BASELINE)
        self._run_cells([refined_run], "refined baseline")
        write_variants(self.folder, self._norms_file(refined_run))
        names = [name for name in ("linear", "refined") if name in options.schedules]
        tuned = [tune_compared(self.results, label, name, options.num_seeds) for name in names]
        peaks = sorted({schedule.peak for schedule in tuned if not schedule.problem})
        cells = compared_cells(label, variant_names(), peaks, options.num_seeds, options.max_steps)
        self._run_cells(cells, "variants")
        return variant_names()

    def _run_cells(self, cells: list[Cell], part: str) -> None:
        run = partial(run_cell, self.setting)
        description = f"{self.setting.label}: {part}"
        run_missing(
            cells,
            run,
            self.results,
            num_workers=self.num_workers,
            description=description,
            after_each=self.after_each,
        )

    def _norms_file(self, cell: Cell) -> Path:
        """The norms of a cell with a role. If the folder of its training is gone, the cell trains again."""
        recorded = self.setting.norms_file(cell)
        is_recorded = recorded.exists()
        PartialState().wait_for_everyone()  # every process has looked before the main process writes
        if not is_recorded:
            run_cell(self.setting, cell)
        return recorded

    def _copy_norms(self, cell: Cell, path: Path) -> None:
        recorded = self._norms_file(cell)
        if PartialState().is_main_process:
            shutil.copyfile(recorded, path)

    def _sample_schedules(self, names: list[str]) -> None:
        """Add the schedules to schedules.json. Every process makes them, because they read the baseline together."""
        steps, multipliers = self.options.max_steps, {}
        for name in names:
            schedule, source = schedule_and_source(name, self.folder)
            if schedule.is_known_in_advance:
                multipliers[name] = sample_multipliers(schedule, steps, source)
        add_sampled_schedules(self.folder, self.setting.label, multipliers)


def read_command_line() -> tuple[ModelArguments, TrainingOptions, GridOptions, DataArguments | None]:
    """Read the command line, and join the launched processes."""
    PartialState(
        cpu=not torch.cuda.is_available()
    )  # without cpu=True, processes launched on CPUs do not see each other
    model_arguments, training, grid, data = parse_options(ModelArguments, TrainingOptions, GridOptions)
    processes = PartialState().num_processes
    if processes > 1 and training.num_workers > 1:
        raise ValueError(
            f"--num_workers is {training.num_workers} and accelerate launch runs {processes} processes; use one of them."
        )
    return model_arguments, training, grid, data


def run_comparison() -> None:
    model_arguments, training, grid, data = read_command_line()
    folder = Path(training.output_dir)
    sizes: list[str | None] = [*grid.sizes] or [None]
    writes = PartialState().is_main_process
    provenance = None
    with ExitStack() as held:
        if writes:
            held.enter_context(only_run_in(folder))
            provenance = held.enter_context(ProvenanceFile(folder, SCRIPT, processes=PartialState().num_processes))
        settings = [prepare_setting(model_arguments, data, training, size) for size in sizes]
        for setting, size in zip(settings, sizes, strict=True):
            if writes:
                model = model_arguments if size is None else replace(model_arguments, config_overrides=size)
                keep_setting(Path(setting.folder), describe_study(setting, grid.max_steps, model, data, training))
            Comparison(setting, grid, training.num_workers, provenance.write if provenance else lambda: None).run()
    for size in sizes:
        print(f"Finished; the report: python scripts/report_comparison.py {folder / (size or '')}")


def main() -> None:
    try:
        run_comparison()
    except (ValueError, OSError) as error:
        exit_with_error(SCRIPT, error)
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()

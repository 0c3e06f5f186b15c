"""Does the schedule that a run's gradient norms ask for match linear decay with the best of several warm-ups?

    python scripts/finetuning_study.py --output_dir runs/study
    python scripts/report_studies.py runs/study

The study follows results/protocol.md. Selection seeds choose the peak learning rate of each schedule and the warm-up of the
reference; three more runs are recorded as baselines; then every schedule trains on the test seeds. The default is a small
version that takes less than ten minutes on two cores: its model is pretrained by the script on CPython's source, and its text
ships with Python. The reports in results/ give the commands of the full studies.

`--regime lora` (which needs peft) and `--regime scratch` train in other ways. `--model_name_or_path` and the text options of
scripts/run_clm.py select other models and data. Each result is appended to results.jsonl as its run ends. A rerun skips the
runs in that file, so a killed study continues where it stopped.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from experiments.arguments import exit_with_error
from experiments.cells import BASELINE, Cell, Result
from experiments.fine_tuning import (
    Setting,
    TrainingOptions,
    check_positive,
    describe_study,
    parse_options,
    prepare_setting,
    refuse_another_start,
    train_cell,
)
from experiments.grid import refuse_several_processes
from experiments.language_modeling import ModelArguments
from experiments.protocol import OTHER_SCHEDULES, REDUCED, SCHEDULES, WITHOUT_CAP, source_file
from experiments.provenance import ProvenanceFile
from experiments.quiet_trainer import print_errors_only
from experiments.rules import RULES
from experiments.study import Study, StudyOptions, describe_selection
from experiments.study_folder import keep_setting, only_run_in

SCRIPT = "finetuning_study.py"


@dataclass
class ProtocolArguments:
    """The size of the study."""

    max_steps: int = field(default=100, metadata={"help": "The number of optimizer updates of a run."})
    start_peak: float = field(
        default=4e-3, metadata={"help": "The middle of the first grid of peaks; the grid is widened where needed."}
    )
    num_selection_seeds: int = field(default=1, metadata={"help": "Seeds that choose peaks and warm-ups."})
    num_test_seeds: int = field(default=3, metadata={"help": "Seeds that are compared."})
    rules: list[str] = field(
        default_factory=list, metadata={"help": f"Rules that are compared, too: any of {', '.join(RULES)}."}
    )
    control_peaks: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Peaks at which linear decay after its best warm-up trains on the test seeds, too, as a control."
        },
    )
    reduced: bool = field(
        default=False,
        metadata={
            "help": "Try fewer peaks and warm-ups, for models that train for minutes: the reduced form of results/protocol.md."
        },
    )
    label: str | None = field(
        default=None, metadata={"help": "The name of the setting in the report (default: the regime)."}
    )

    def __post_init__(self) -> None:
        for name in ("max_steps", "num_selection_seeds", "num_test_seeds"):
            check_positive(self, name)
        if not 0 < self.start_peak < math.inf:
            raise ValueError(f"--start_peak is {self.start_peak}, but must be a positive learning rate.")
        if not all(0 < peak < math.inf for peak in self.control_peaks):
            raise ValueError(f"--control_peaks is {self.control_peaks}, but must be positive learning rates.")
        for name in self.rules:
            if name not in RULES:
                raise ValueError(f"--rules has {name!r}, but must be of {', '.join(RULES)}.")


def train(setting: Setting, cell: Cell) -> Result:
    """Train a cell of the study."""
    print_errors_only()
    source = source_file(Path(setting.folder), cell.schedule, cell.seed)
    return train_cell(setting, cell, SCHEDULES[cell.schedule], source, record_norms=cell.role == BASELINE)


def run_study() -> None:
    refuse_several_processes()
    print_errors_only()
    model, training, size, data = parse_options(ModelArguments, TrainingOptions, ProtocolArguments)
    folder = Path(training.output_dir)
    with only_run_in(folder), ProvenanceFile(folder, SCRIPT) as provenance:
        options = StudyOptions(
            size.max_steps,
            size.start_peak,
            size.num_selection_seeds,
            size.num_test_seeds,
            training.num_workers,
            others=(*(WITHOUT_CAP if size.reduced else OTHER_SCHEDULES), *size.rules),
            reduced=size.reduced,
            control_peaks=size.control_peaks,
        )
        setting = prepare_setting(model, data, training)
        described = describe_study(setting, size.max_steps, model, data, training)
        protocol = {"protocol": REDUCED} if size.reduced else {}
        keep_setting(folder, {**described, **protocol, **describe_selection(options), **refuse_another_start(setting)})
        label = size.label or f"{training.regime}, {size.max_steps} updates"
        Study(folder, label, options, partial(train, setting), setting.norms_file, provenance.write).run()
    print(f"Finished; the report: python scripts/report_studies.py {folder}")


def main() -> None:
    try:
        run_study()
    except (ValueError, OSError) as error:
        exit_with_error(SCRIPT, error)


if __name__ == "__main__":
    main()

"""What one rank of a launch observes of its run, and the file in which it reports that."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # the process that reads reports does not wait for accelerate
    from accelerate import Accelerator

NETWORK_NAMESPACE = Path("/proc/self/ns/net")


Rate = float | list[float] | None
"""The learning rate of an update. None if the optimizer did not step, a list if it stepped with several rates."""


@dataclass
class RankReport:
    """The observations of one rank."""

    world_size: int
    distributed_type: str
    """The value of accelerate's `DistributedType`."""
    rates: list[Rate]
    """Of each update."""
    norms: list[list[float] | None] = field(default_factory=list)
    """L1 and L2 norm of each update, if the rank measured them. None if they are not finite."""
    warnings: list[str] = field(default_factory=list)
    """The package's warnings."""
    setup: list[str] = field(default_factory=list)
    """How the model was wrapped, sharded and configured, in the words of `launch_cells.Cell.setup`."""
    network: str = ""
    """The id of the network namespace."""

    @classmethod
    def read(cls, output_dir: Path, rank: int) -> Self:
        """Read the report of a rank.

        Args:
            output_dir: the folder of the run.
            rank: the rank.
        """
        return cls(**json.loads(report_path(output_dir, rank).read_text()))


def report_path(output_dir: Path, rank: int) -> Path:
    """The file of a rank's report."""
    return output_dir / f"rank{rank}.json"


def end_run(
    accelerator: "Accelerator",
    output_dir: Path,
    rates: Iterable[Rate],
    norms: list[list[float] | None] | None = None,
    warnings: list[str] | None = None,
    setup: list[str] | None = None,
) -> None:
    """Write this rank's report and end the run.

    Args:
        accelerator: of the run.
        output_dir: the folder of the run.
        rates: as in `RankReport`, like the others.
        norms: none by default.
        warnings: none by default.
        setup: nothing by default.
    """
    report = RankReport(
        world_size=accelerator.num_processes,
        distributed_type=accelerator.distributed_type.value,
        rates=list(rates),
        norms=norms or [],
        warnings=warnings or [],
        setup=setup or [],
        network=os.readlink(NETWORK_NAMESPACE) if NETWORK_NAMESPACE.exists() else "",
    )
    path = report_path(output_dir, accelerator.process_index)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(asdict(report)))
    unfinished.replace(path)  # a report that exists is whole
    accelerator.wait_for_everyone()
    accelerator.end_training()

"""The norms of torch's FSDP1, from the shards of two gloo processes."""

import json
import math

import pytest

from .tiny import SCRIPTS, read_rows, torchrun
from .tolerances import FLOAT32_GRADIENTS

ELEMENTS = 7 * 5 + 5 + 5 * 3 + 3 + 3 * 1 + 1
WHOLE_LAYER = 5 * 3 + 3


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp1")
    done = torchrun(SCRIPTS / "fsdp1_loop.py", folder, OMP_NUM_THREADS="1")
    reports = [folder / f"rank{rank}.json" for rank in range(2)]
    assert all(report.exists() for report in reports), done.stdout + done.stderr
    found = [json.loads(report.read_text()) for report in reports]
    assert [(one["world_size"], one["distributed_type"]) for one in found] == [(2, "FSDP")] * 2
    return found


@pytest.mark.parametrize(
    ("setting", "held"),
    [
        ("shards of the parameters", ELEMENTS),
        ("shards of flat parameters", ELEMENTS),
        ("one layer is whole on every rank", ELEMENTS + WHOLE_LAYER),
        ("nothing is sharded", 2 * ELEMENTS),
    ],
)
class TestSettings:
    def test_the_ranks_hold_what_the_setting_says(self, ranks, setting, held):
        assert sum(rank[setting]["elements"] for rank in ranks) == held

    def test_norms_are_those_of_one_process(self, ranks, setting, held):
        found = ranks[0][setting]
        header, (*rows, overflow) = read_rows(found["file"])
        assert [row["l1"] for row in rows] == pytest.approx([l1 for l1, _ in found["expected"]], rel=FLOAT32_GRADIENTS)
        assert [row["l2"] for row in rows] == pytest.approx([l2 for _, l2 in found["expected"]], rel=FLOAT32_GRADIENTS)
        factors = [min(1, 0.1 / (l2 + 1e-6)) for _, l2 in found["expected"]]
        assert max(factors) < 0.5
        assert [row["clip_factor"] for row in rows] == pytest.approx(factors, rel=FLOAT32_GRADIENTS)
        assert (overflow["l1"], overflow["l2"]) == (None, None)
        assert header["max_grad_norm"] == 0.1

    def test_recording_changes_no_bit_of_a_gradient(self, ranks, setting, held):
        """Nor of one with an infinite element."""
        assert [rank[setting]["same gradients"] for rank in ranks] == [True, True]


def test_why_the_norm_is_not_that_of_a_clip_to_infinity(ranks):
    """It would be L1, but one infinite element makes all others NaN, which the loop's own clip makes 0."""
    for rank in ranks:
        finite, infinite = rank["clip to infinity"]
        assert finite["l1"] == pytest.approx(rank["shards of the parameters"]["expected"][0][0], rel=FLOAT32_GRADIENTS)
        assert (finite["same"], finite["nan"]) == (True, False)
        assert (infinite["l1"], infinite["nan"]) == (math.inf, True)


@pytest.mark.parametrize("loop", ["no clip", "a clip of some parameters"])
def test_a_loop_that_does_not_show_its_module_is_refused_on_every_rank(ranks, loop):
    assert [rank[loop] for rank in ranks] == [
        "Gradient norms cannot be recorded: FSDP1 shows its gradients only where accelerator.clip_grad_norm_ gets all "
        "parameters of the model, and this loop does not call it so; use FSDP2."
    ] * 2

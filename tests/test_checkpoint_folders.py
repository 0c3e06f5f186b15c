"""The list of a Trainer's checkpoints."""

from hf_refined_schedule.norms.checkpoint_folders import checkpoint_folders


def test_the_largest_number_is_the_newest(tmp_path):
    """By number, not by name or time of writing."""
    for number in (100, 20, 3, 1000):
        (tmp_path / f"checkpoint-{number}").mkdir()
    assert list(checkpoint_folders(tmp_path).items()) == [
        (number, tmp_path / f"checkpoint-{number}") for number in (1000, 100, 20, 3)
    ]


def test_other_names_and_files_are_left_out(tmp_path):
    for name in ("checkpoint-final", "checkpoint-5-old", "old-checkpoint-6", "checkpoint-", "checkpoint--7", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-8").write_text("a file")
    (tmp_path / "checkpoint-2").mkdir()
    assert checkpoint_folders(str(tmp_path)) == {2: tmp_path / "checkpoint-2"}


def test_a_folder_that_is_missing_has_none(tmp_path):
    assert checkpoint_folders(tmp_path / "nothing") == {}
    (tmp_path / "file").write_text("")
    assert checkpoint_folders(tmp_path / "file") == {}

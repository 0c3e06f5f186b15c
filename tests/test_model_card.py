"""The model card of a refined run, written by the real Trainer."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import Trainer

from hf_refined_schedule import RefinedScheduleMixin, RefinedScheduleTrainer
from hf_refined_schedule.schedules.refined_schedule import Extension, RefinedSchedule
from hf_refined_schedule.schedules.schedule_file import write_schedule
from hf_refined_schedule.training import model_card, optional_pictures

from .records import write_norms
from .tiny import tiny_arguments, tiny_data, tiny_model


@pytest.fixture
def source(tmp_path):
    """Norms that stay about the same: the verdict is that linear decay will do."""
    write_norms(
        tmp_path / "secret" / "runs" / "baseline" / "gradient_norms.jsonl",
        [2 + 0.05 * (7 * step % 13) for step in range(100)],
    )
    return tmp_path / "secret" / "runs" / "baseline"


def trained(tmp_path, trainer_class=RefinedScheduleTrainer, **options):
    arguments = tiny_arguments(tmp_path / "out", max_steps=4, warmup_steps=2, **options)
    trainer = trainer_class(tiny_model(), arguments, train_dataset=tiny_data(16))
    trainer.train()
    return trainer


def refined(source, **options):
    return {"lr_scheduler_type": "refined", "lr_scheduler_kwargs": {"refined_from": str(source), **options}}


def card(trainer):
    trainer.create_model_card(model_name="tiny")
    return Path(trainer.args.output_dir, "README.md").read_text()


def test_it_names_schedule_run_and_verdict(tmp_path, source):
    trainer = trained(tmp_path, **refined(source, smoothing=0.12))
    text = card(trainer)
    assert "refined from the gradient norms of `runs/baseline`, by" in text
    assert "secret" not in text  # a card may be public
    assert f"- Fingerprint: `{trainer.lr_scheduler.fingerprint}`\n" in text
    assert re.search(r"- Peak at 0% of 4 updates, mean multiplier 0\.\d\d \(linear decay: 0\.50\)\n", text)
    assert "- Capped by a linear warm-up of 2 updates\n" in text
    assert "- Verdict on that run: sound\n" in text
    assert "- Weights: L1 ** -1, smoothing 0.12\n" in text
    assert "](learning_rate_schedule.png)\n" in text
    assert (tmp_path / "out" / "learning_rate_schedule.png").read_bytes().startswith(b"\x89PNG")
    assert (
        text.index("### Training hyperparameters")
        < text.index("### Learning-rate schedule")
        < text.index("### Framework")
    )
    assert card(trainer) == text


def test_a_source_that_is_gone_or_has_changed(tmp_path, source):
    trainer = trained(tmp_path, **refined(source))
    write_norms(source / "gradient_norms.jsonl", list(np.linspace(3, 1, 100)))
    assert "- Verdict: not known, because the source no longer gives this schedule\n" in card(trainer)
    shutil.rmtree(source)
    text = card(trainer)
    assert "- Verdict: not known, because the source no longer gives this schedule\n" in text
    assert "](learning_rate_schedule.png)" in text  # of the schedule alone


def test_an_extended_run(tmp_path):
    extended = RefinedSchedule(
        grid=np.array([1.0, 1.0, 1.0, 0.5, 0.0]),
        source=str(tmp_path / "secret" / "runs" / "checkpoint-2"),
        weights=None,
        extension=Extension(2, 4, 1e-3),
    )
    write_schedule(extended, tmp_path / "extension.json")
    text = card(trained(tmp_path, **refined(tmp_path / "extension.json")))
    assert "followed a schedule that extends the run after `runs/checkpoint-2`, by" in text
    assert "- Extended after update 2\n" in text
    assert "secret" not in text
    assert "](learning_rate_schedule.png)\n" in text


def test_a_section_that_fails_costs_no_checkpoint(tmp_path, source, monkeypatch, caplog):
    def fail(*args):
        raise KeyError("a fault")

    monkeypatch.setattr(model_card, "_section", fail)
    assert "### Training hyperparameters" in card(trained(tmp_path, **refined(source)))
    assert "The model card says nothing about the refined schedule: KeyError" in caplog.text


class CardAtEveryCheckpoint(RefinedScheduleTrainer):
    """Writes its card when TRL's trainers do."""

    def _save_checkpoint(self, *args, **kwargs):
        self.create_model_card(model_name="tiny")
        super()._save_checkpoint(*args, **kwargs)


def test_a_run_refines_and_draws_once_for_all_its_cards(tmp_path, source, monkeypatch):
    calls = []

    def counted(function):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    for module, name in ((model_card, "refine_sources"), (optional_pictures, "norms_and_schedule_figure")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    once = ["refine_sources", "norms_and_schedule_figure"]
    trainer = trained(tmp_path, CardAtEveryCheckpoint, **refined(source), save_strategy="steps", save_steps=1)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == [
        "checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"
    ]  # fmt: skip
    assert calls == once
    text = card(trainer)
    assert "- Verdict on that run: sound" in text
    (tmp_path / "out" / "learning_rate_schedule.png").unlink()
    assert card(trainer) == text
    assert calls == [*once, "norms_and_schedule_figure"]  # a picture that is gone is drawn again

    trainer.train()  # another run of the same Trainer
    assert calls == [*once, "norms_and_schedule_figure", *once]
    shutil.rmtree(source)
    assert card(trainer) == text
    assert calls == [*once, "norms_and_schedule_figure", *once]


def test_without_matplotlib(tmp_path, source, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    text = card(trained(tmp_path, **refined(source)))
    assert "- Verdict on that run: sound" in text
    assert ".png" not in text
    assert not (tmp_path / "out" / "learning_rate_schedule.png").exists()


def test_other_runs_keep_their_card(tmp_path, source):
    assert "Learning-rate schedule" not in card(trained(tmp_path, lr_scheduler_type="linear"))
    untrained = RefinedScheduleTrainer(
        tiny_model(), tiny_arguments(tmp_path / "out", **refined(source)), train_dataset=tiny_data(4)
    )
    assert "Learning-rate schedule" not in card(untrained)


def test_what_push_to_hub_uploads(tmp_path, source, monkeypatch):
    """The card that goes to the hub, up to the upload itself, for which a test has no network."""

    class Reached(Exception):
        pass

    def finish_current_push():
        raise Reached

    class OwnTrainer(RefinedScheduleMixin, Trainer):
        pass

    trainer = trained(tmp_path, OwnTrainer, hub_model_id="someone/tiny", **refined(source))
    trainer.hub_model_id = "someone/tiny"
    monkeypatch.setattr(trainer, "_finish_current_push", finish_current_push)
    with pytest.raises(Reached):
        trainer.push_to_hub()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\n# tiny\n" in text
    assert "### Learning-rate schedule" in text


def test_a_source_from_the_environment(tmp_path, source, monkeypatch):
    monkeypatch.setenv("HF_REFINED_SCHEDULE_FROM", "baseline")
    monkeypatch.setenv("HF_REFINED_SCHEDULE_FOLDER", str(source.parent))
    text = card(trained(tmp_path, lr_scheduler_type="refined"))
    assert "of `baseline`, by" in text
    assert "- Verdict on that run: sound" in text

"""The page on Lightning, and which gradients its callback measures."""

import logging

import pytest
import torch

from .pages import run_code, run_page
from .reference import bounded_warmup_rates
from .tiny import read_rows
from .tolerances import FLOAT32_GRADIENTS

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: pip install lightning")

from hf_refined_schedule.integrations.lightning import GradientNormCallback  # noqa: E402 - Lightning may be missing

# Lightning 2.6 uses what torch 2.13 calls deprecated, and advises more workers for the loader.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

UPDATES = 24
MODEL = f"""
import lightning.pytorch as pl
import torch

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch):
        return (self.layer(batch[:, :4]) - batch[:, 4:]).square().mean()

torch.manual_seed(1)
loader = torch.utils.data.DataLoader(torch.randn({UPDATES * 4}, 5), batch_size=4)
"""


def test_the_page(tmp_path):
    script = MODEL + "pl.Trainer(max_epochs=1).fit(Plain(), loader)\n"
    plain = "class Plain(Model):\n    def configure_optimizers(self):\n        return torch.optim.SGD(self.parameters(), 0.1)\n"
    (tmp_path / "train.py").write_text(script.replace("pl.Trainer", f"{plain}\npl.Trainer"))
    run_page("lightning", tmp_path, before=MODEL)
    recorded = {name: read_rows(tmp_path / "runs" / name / "gradient_norms.jsonl") for name in ("baseline", "refined")}
    header, rows = recorded["baseline"]
    assert (header["num_training_steps"], header["max_grad_norm"], header["optimizer"]) == (UPDATES, 1.0, "AdamW")
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-2 * (1 - t / UPDATES) for t in range(UPDATES)])
    expected = bounded_warmup_rates([row["l1"] for row in rows], 0.2)  # a window of five, the default for so few norms
    rates = [row["learning_rate"] for row in recorded["refined"][1]]
    assert rates == pytest.approx([1e-2 * value for value in expected])
    # The entry point has recorded the run of train.py, whose logger is the last.
    files = sorted((tmp_path / "lightning_logs").rglob("gradient_norms.jsonl"))
    assert [read_rows(file)[0]["optimizer"] for file in files] == ["SGD"]


def test_without_the_variable_the_entry_point_adds_nothing(tmp_path):
    printed = run_code(MODEL + "print([type(one).__name__ for one in pl.Trainer().callbacks])", "python", tmp_path)
    assert "GradientNormCallback" not in printed
    assert "ModelCheckpoint" in printed


class Quadratic(pl.LightningModule):
    """The gradient of the n-th update is n * (3, -4) for each micro-batch of value n."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def training_step(self, batch):
        return (self.weight * torch.tensor([3.0, -4.0]) * batch).sum() / len(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, values, callbacks, batch_size=1, module=None, **options):
    trainer = pl.Trainer(
        max_epochs=1, callbacks=callbacks, accelerator="cpu", logger=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1, **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.tensor(values)[:, None], batch_size=batch_size)
    trainer.fit(module or Quadratic(), loader)
    return trainer


def test_norms_are_whole_and_before_clipping(tmp_path):
    trainer = fit(
        tmp_path, [1.0, 1.0, 2.0, 4.0], [GradientNormCallback()], accumulate_grad_batches=2, gradient_clip_val=1.0,
        enable_checkpointing=False,
    )  # fmt: skip
    header, rows = read_rows(tmp_path / "gradient_norms.jsonl")
    assert header["num_training_steps"] == 2
    # The mean of two micro-batches: 1 and 3 times (3, -4), whose L1 norm is 7 and whose L2 norm is 5.
    assert [row["l1"] for row in rows] == pytest.approx([7, 21], rel=FLOAT32_GRADIENTS)
    assert [row["l2"] for row in rows] == pytest.approx([5, 15], rel=FLOAT32_GRADIENTS)
    assert [row["clip_factor"] for row in rows] == pytest.approx([1 / 5, 1 / 15], rel=1e-5)
    assert trainer.callback_metrics["grad_norm_l1"] == pytest.approx(21)


def test_two_callbacks_record_once(tmp_path):
    callbacks = [GradientNormCallback(tmp_path / "first"), GradientNormCallback(tmp_path / "second")]
    fit(tmp_path, [1.0, 2.0], callbacks, enable_checkpointing=False)
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == ["first"]


class TwoOptimizers(Quadratic):
    """The second optimizer makes two steps for each of the first."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = torch.nn.Parameter(torch.zeros(1))

    def configure_optimizers(self):
        return [torch.optim.SGD([self.weight], lr=0.1), torch.optim.SGD([self.other], lr=0.1)]

    def training_step(self, batch):
        first, second = self.optimizers()
        for optimizer, loss in (
            (first, super().training_step(batch)),
            (second, self.other.sum()),
            (second, self.other.sum()),
        ):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


def test_the_first_of_two_optimizers_is_recorded_on_after_a_resume(tmp_path):
    for values, checkpoint in (([1.0, 2.0, 3.0], None), ([1.0, 2.0, 3.0, 4.0], "last.ckpt")):
        callback = GradientNormCallback(tmp_path / "norms")
        trainer = pl.Trainer(
            max_epochs=1 if checkpoint is None else 2, callbacks=[callback], accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(torch.tensor(values)[:, None])
        trainer.fit(TwoOptimizers(), loader, ckpt_path=checkpoint and tmp_path / checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    header, rows = read_rows(tmp_path / "norms" / "gradient_norms.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert header["num_training_steps"] == 7


def trainer_of(folder, callback, **options):
    return pl.Trainer(
        max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False, **options,
    )  # fmt: skip


def test_a_checkpoint_that_is_tested_does_not_continue_the_recording(tmp_path):
    class Tested(Quadratic):
        def test_step(self, batch):
            pass

    def loader(*values):
        return torch.utils.data.DataLoader(torch.tensor(values)[:, None])

    callback = GradientNormCallback(tmp_path / "norms")
    trainer = trainer_of(tmp_path, callback)
    trainer.fit(Tested(), loader(1.0, 2.0, 3.0))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer.test(Tested(), loader(1.0), ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False)
    trainer_of(tmp_path, callback).fit(Tested(), loader(4.0, 5.0))
    header, rows = read_rows(tmp_path / "norms" / "gradient_norms.jsonl")
    assert (header["num_training_steps"], [row["step"] for row in rows]) == (2, [1, 2])


def test_a_checkpoint_knows_its_updates_where_recording_has_failed(tmp_path):
    trainer = trainer_of(tmp_path, GradientNormCallback())
    trainer.fit(WithoutGradient(), torch.utils.data.DataLoader(torch.ones(3, 1)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["hf_refined_schedule_step"] == checkpoint["global_step"] == 3


class WithoutGradient(Quadratic):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch):
        self.optimizers().step()


def test_where_there_is_no_gradient_the_run_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, [1.0, 2.0], [GradientNormCallback()], module=WithoutGradient(), enable_checkpointing=False)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("hf_refined_schedule")]
    assert messages == [
        "Gradient norms are not recorded from update 1 on: no parameter of the optimizer had a gradient at its step."
    ]
    assert not list(tmp_path.rglob("*.jsonl"))

"""The plugin, loaded by axolotl from the configurations on its page, with the arguments and callbacks passed to a Trainer."""

import pytest
import yaml
from transformers import Trainer

from .pages import blocks
from .reference import bounded_warmup_rates
from .refusals import refuses
from .tiny import rates, read_rows, tiny_arguments, tiny_data, tiny_model

pytest.importorskip("axolotl", reason="axolotl is not installed")

from axolotl.integrations.base import PluginManager
from axolotl.integrations.config import merge_input_args
from axolotl.utils.dict import DictDefault

PLUGIN = "hf_refined_schedule.integrations.axolotl.RefinedSchedulePlugin"


@pytest.fixture
def manager():
    manager = PluginManager.get_instance()
    yield manager
    manager.plugins.clear()


@pytest.fixture
def configurations():
    return [yaml.safe_load(code) for language, code in blocks("axolotl") if language == "yaml"]


def prepare(manager, configuration):
    """As `axolotl.cli.config.prepare_plugins` and the check of the configuration do."""
    for name in configuration["plugins"]:
        manager.register(name)
    for plugin in manager.plugins.values():
        plugin.register(configuration)
    assert list(manager.plugins) == [PLUGIN]
    _, inputs = merge_input_args()
    return DictDefault(inputs.model_validate(configuration).model_dump(exclude_none=True))


def train(manager, configuration, folder):
    """As axolotl's builder does, with the values of the configuration that the tiny run takes."""
    kwargs = {"lr_scheduler_kwargs": configuration.lr_scheduler_kwargs or {}}
    kwargs |= manager.get_training_args(configuration) or {}
    arguments = tiny_arguments(
        folder / configuration.output_dir, lr_scheduler_type=configuration.lr_scheduler, max_steps=24,
        learning_rate=configuration.learning_rate, warmup_steps=configuration.warmup_steps, **kwargs,
    )  # fmt: skip
    trainer = Trainer(tiny_model(), arguments, train_dataset=tiny_data())
    for callback in manager.add_callbacks_post_trainer(configuration, trainer):
        trainer.add_callback(callback)
    trainer.train()
    return trainer


def test_the_page(manager, configurations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for configuration in configurations:
        trainer = train(manager, prepare(manager, configuration), tmp_path)
    norms = [row["l1"] for row in read_rows(tmp_path / "runs" / "baseline" / "gradient_norms.jsonl")[1]]
    expected = bounded_warmup_rates(norms, 0.2)  # a window of five norms, the default for so few
    assert rates(trainer) == pytest.approx([2e-4 * value for value in expected])
    assert len(read_rows(tmp_path / "runs" / "refined" / "gradient_norms.jsonl")[1]) == 24


def test_a_source_without_the_schedule(manager, configurations):
    _, refined = configurations
    configuration = prepare(manager, {**refined, "lr_scheduler": "cosine"})
    with refuses("refined_from", "'cosine'", "lr_scheduler: refined"):
        manager.get_training_args(configuration)


def test_other_options_are_kept(manager, configurations):
    _, refined = configurations
    configuration = prepare(manager, {**refined, "lr_scheduler_kwargs": {"smoothing": 0.2}})
    kwargs = manager.get_training_args(configuration)["lr_scheduler_kwargs"]
    assert kwargs == {"smoothing": 0.2, "refined_from": "runs/baseline"}

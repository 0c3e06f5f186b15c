"""The wrap of a method among other tools' wraps, and the patches that are built on it."""

import argparse
import copy
import gc
import pickle
import weakref

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FullyShardedDataParallel

from hf_refined_schedule.compatibility.engines import unwatch_engine_clips, watch_engine_clips
from hf_refined_schedule.compatibility.libraries import change_count, unwatch_clipping, watch_clipping
from hf_refined_schedule.compatibility.method_wrap import MethodWrap
from hf_refined_schedule.compatibility.unmodified_scripts import prepared_optimizers, widened_choices


class Greeter:
    def greet(self, name, *, loud=False):
        return name.upper() if loud else name


def brackets(call, instance, *args, **kwargs):
    return f"[{call(*args, **kwargs)}]"


def wrap_by_another_tool(owner):
    """`<...>` around a method of a class, whatever it is by then; returns what takes it off."""
    method = owner.greet
    owner.greet = lambda self, *args, **kwargs: f"<{method(self, *args, **kwargs)}>"
    return lambda: setattr(owner, "greet", method)


@pytest.fixture
def owner():
    class Owner(Greeter):
        def greet(self, name, *, loud=False):
            return super().greet(name, loud=loud)

    return Owner


# --- a class ---


def test_a_method_is_wrapped_and_put_back(owner):
    method, wrap = owner.greet, MethodWrap("greet", brackets)
    wrap.install(owner)
    assert owner().greet("a", loud=True) == "[A]"
    assert owner.greet.__name__ == "greet"
    wrap.remove()
    assert owner.greet is method


def test_a_wrap_is_installed_once(owner):
    method, wrap = owner.greet, MethodWrap("greet", brackets)
    wrap.install(owner)
    wrap.install(owner)
    assert owner().greet("a") == "[a]"
    wrap.remove()
    assert owner.greet is method


def test_removing_what_is_not_installed_changes_nothing(owner):
    method, wrap = owner.greet, MethodWrap("greet", brackets)
    wrap.remove()
    wrap.install(owner)
    wrap.remove()
    wrap.remove()
    assert owner.greet is method


def test_a_method_that_a_class_inherits_is_inherited_again():
    class Heir(Greeter):
        pass

    wrap = MethodWrap("greet", brackets)
    wrap.install(Heir)
    assert (Heir().greet("a"), Greeter().greet("a")) == ("[a]", "a")
    wrap.remove()
    assert "greet" not in vars(Heir)


def test_instances_call_each_other_through_the_wrap(owner):
    """The guard against two wrappers in one call is for one instance."""
    friend = owner()

    def ask_a_friend(call, instance, name):
        return call(name) if instance is friend else f"{call(name)} and {friend.greet('b')} {friend.greet('c')}"

    with MethodWrap("greet", ask_a_friend).installed(owner):
        assert owner().greet("a") == "a and b c"


def test_a_call_after_one_that_failed_is_wrapped_too(owner):
    greeter = owner()
    with MethodWrap("greet", brackets).installed(owner):
        with pytest.raises(AttributeError):
            greeter.greet(5, loud=True)
        assert greeter.greet("a") == "[a]"


def test_a_block_that_fails_puts_the_method_back(owner):
    method = owner.greet
    with pytest.raises(KeyError), MethodWrap("greet", brackets).installed(owner):
        raise KeyError
    assert owner.greet is method


def test_under_another_tools_wrapper_it_passes_calls_through_once_removed(owner):
    wrap = MethodWrap("greet", brackets)
    wrap.install(owner)
    take_off = wrap_by_another_tool(owner)
    assert owner().greet("a") == "<[a]>"
    wrap.remove()
    assert owner().greet("a") == "<a>", "the other tool's wrapper stays"
    take_off()
    assert owner().greet("a") == "a"


def test_installed_again_above_another_tools_wrapper_it_is_called_once(owner):
    wrap = MethodWrap("greet", brackets)
    wrap.install(owner)
    wrap_by_another_tool(owner)
    wrap.remove()
    wrap.install(owner)
    assert owner().greet("a") == "[<a>]"
    wrap.remove()
    assert owner().greet("a") == "<a>"


def test_installed_again_where_another_tool_has_gone_it_is_put_back_all_the_same(owner):
    method, wrap = owner.greet, MethodWrap("greet", brackets)
    wrap.install(owner)
    take_off = wrap_by_another_tool(owner)
    wrap.remove()
    take_off()
    wrap.install(owner)
    assert owner().greet("a") == "[a]"
    wrap.remove()
    assert owner.greet is method


# --- one object ---


def test_an_object_is_wrapped_alone():
    one, other, wrap = Greeter(), Greeter(), MethodWrap("greet", brackets)
    wrap.install(one)
    assert (one.greet("a"), other.greet("a")) == ("[a]", "a")
    wrap.remove()
    assert vars(one) == {}


def test_an_attribute_of_the_object_is_put_back():
    greeter, wrap = Greeter(), MethodWrap("greet", brackets)
    greeter.greet = own = lambda name: f"{name}!"
    wrap.install(greeter)
    assert greeter.greet("a") == "[a!]"
    wrap.remove()
    assert greeter.greet is own


def test_a_deep_copy_of_a_wrapped_object_is_not_wrapped():
    class Numbered(Greeter):
        number = 1

        def greet(self, name):
            return f"{name} by {self.number}"

    greeter = Numbered()
    with MethodWrap("greet", brackets).installed(greeter):
        twin = copy.deepcopy(greeter)
        twin.number = 2
        assert (twin.greet("a"), greeter.greet("a")) == ("a by 2", "[a by 1]")
    assert (twin.greet("a"), greeter.greet("a")) == ("a by 2", "a by 1")


@pytest.fixture
def optimizer():
    """Nothing can pickle an optimizer while a loader of the process is in the middle of an epoch, as a stopped run leaves it."""
    GradientState._reset_state()
    return Accelerator(cpu=True).prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))


def test_a_wrapped_optimizer_can_be_pickled(optimizer):
    with MethodWrap("step", brackets).installed(optimizer):
        assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["lr"] == 0.1


def count_calls(counter):
    def count(call, instance, *args, **kwargs):
        counter.append(1)
        return call(*args, **kwargs)

    return count


def make_scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


def test_a_scheduler_that_is_built_before_the_wrap_still_sees_the_step(optimizer):
    """PyTorch warns, which fails this test, if a scheduler does not find its marks on `step` or saw no step."""
    scheduler, calls = make_scheduler(optimizer), []
    with MethodWrap("step", count_calls(calls)).installed(optimizer):
        optimizer.step()
        scheduler.step()
        make_scheduler(optimizer)
        optimizer.step()
    assert len(calls) == 2
    optimizer.step()
    assert len(calls) == 2


def test_a_scheduler_that_is_built_on_the_wrap_keeps_it_quiet_afterwards(optimizer):
    calls = []
    wrap = MethodWrap("step", count_calls(calls))
    wrap.install(optimizer)
    scheduler = make_scheduler(optimizer)
    optimizer.step()
    scheduler.step()
    wrap.remove()
    optimizer.step()
    assert len(calls) == 1
    wrap.install(optimizer)
    optimizer.step()
    scheduler.step()
    assert len(calls) == 2, "two wrappers in one call are one call"


# --- the patches ---


class Watcher:
    def __init__(self):
        self.seen = []

    def before_clip(self, parameters, norm_type):
        self.seen.append((len(parameters), norm_type))
        return True

    def after_clip(self, max_norm, total_norm):
        self.seen.append((max_norm, float(total_norm)))


@pytest.mark.parametrize(
    ("args", "kwargs", "norm_type"),
    [
        ((1.0,), {}, 2.0),
        ((1.0, 1), {}, 1),
        ((1.0,), {"norm_type": 1}, 1),
        ((), {"max_norm": 1.0, "norm_type": 1}, 1),
    ],
)
@pytest.mark.parametrize("given", [list, iter, lambda parameters: parameters[0]], ids=["list", "iterator", "tensor"])
def test_clipping_is_watched_however_it_is_called(args, kwargs, norm_type, given):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, -4.0])
    watcher, clip = Watcher(), Accelerator.clip_grad_norm_
    watch_clipping(watcher)
    try:
        total_norm = Accelerator(cpu=True).clip_grad_norm_(given([parameter]), *args, **kwargs)
    finally:
        unwatch_clipping(watcher)
    expected = 7.0 if norm_type == 1 else 5.0
    assert watcher.seen == [(1, norm_type), (1.0, expected)]
    assert float(total_norm) == expected
    assert Accelerator.clip_grad_norm_ is clip


def test_watchers_that_die_do_not_outlive_their_training():
    clip, watcher, other = Accelerator.clip_grad_norm_, Watcher(), Watcher()
    watch_clipping(watcher)
    died = weakref.ref(watcher)
    del watcher
    gc.collect()
    assert died() is None
    watch_clipping(other)
    unwatch_clipping(other)
    assert Accelerator.clip_grad_norm_ is clip


def test_the_clip_of_an_engine_is_put_back_after_its_last_watcher():
    clip, first, second = FullyShardedDataParallel.clip_grad_norm_, Watcher(), Watcher()
    for watcher in (first, second):
        watch_engine_clips(watcher, DistributedType.FSDP)
    wrapped = FullyShardedDataParallel.clip_grad_norm_
    assert wrapped is not clip
    unwatch_engine_clips(first)
    assert FullyShardedDataParallel.clip_grad_norm_ is wrapped
    unwatch_engine_clips(second)
    assert FullyShardedDataParallel.clip_grad_norm_ is clip


class NewerAccelerator(Accelerator):
    """Of a version in which two methods have a keyword more."""

    def clip_grad_norm_(self, parameters, max_norm, norm_type=2, *, foreach=None):
        assert foreach
        return super().clip_grad_norm_(parameters, max_norm, norm_type)

    def prepare_optimizer(self, optimizer, device_placement=None, *, lazily=None):
        assert lazily
        return super().prepare_optimizer(optimizer, device_placement)


def test_a_subclass_with_more_keywords_is_watched():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, -4.0])
    watcher, prepared = Watcher(), []
    accelerator = NewerAccelerator(cpu=True)
    watch_clipping(watcher)
    try:
        accelerator.clip_grad_norm_([parameter], 1.0, foreach=True)
    finally:
        unwatch_clipping(watcher)
    with prepared_optimizers(lambda *both: prepared.append(both)):
        optimizer = accelerator.prepare_optimizer(torch.optim.SGD([parameter], lr=0.1), lazily=True)
    assert watcher.seen == [(1, 2), (1.0, 5.0)]
    assert prepared == [(accelerator, optimizer)]


@pytest.mark.parametrize("method", ["clip_grad_norm_", "prepare_optimizer"])
def test_a_keyword_that_this_package_does_not_know_is_passed_on(monkeypatch, method):
    given = []
    monkeypatch.setattr(Accelerator, method, lambda self, *args, **kwargs: given.append((args, kwargs)))
    accelerator, watcher = Accelerator(cpu=True), Watcher()
    watcher.before_clip = lambda parameters, norm_type: False
    watch_clipping(watcher)
    try:
        with prepared_optimizers(lambda *both: None):
            getattr(accelerator, method)([], 1.0, unheard_of=5)
    finally:
        unwatch_clipping(watcher)
    assert given == [(([], 1.0), {"unheard_of": 5})]


def test_an_optimizer_is_prepared_when_the_outermost_call_returns(monkeypatch):
    """FSDP2 replaces parameters after `prepare_optimizer`, and DeepSpeed's optimizers are never given to it."""
    events = []
    prepare = Accelerator.prepare

    def prepare_in_two_steps(self, *args):
        prepared = prepare(self, *args)
        events.append("parameters replaced")
        return prepared

    monkeypatch.setattr(Accelerator, "prepare", prepare_in_two_steps)
    accelerator = Accelerator(cpu=True)
    with prepared_optimizers(lambda *both: events.append(both)):
        optimizer = accelerator.prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
        accelerator.prepare(optimizer)
    assert events == ["parameters replaced", (accelerator, optimizer), "parameters replaced"]


def test_prepared_optimizers_ends_with_its_block():
    method, prepared = Accelerator.prepare_optimizer, []
    with prepared_optimizers(lambda accelerator, optimizer: prepared.append(optimizer)):
        pass
    assert Accelerator.prepare_optimizer is method
    Accelerator(cpu=True).prepare(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    assert prepared == []


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (["linear", "cosine"], ["linear", "cosine", "refined"]),
        (("linear", "cosine", "refined"), ["linear", "cosine", "refined"]),
        (["linear"], ["linear"]),
        (["adam", "sgd"], ["adam", "sgd"]),
    ],
)
def test_literal_choices_are_widened_while_the_block_runs(choices, expected):
    add_argument = argparse._ActionsContainer.add_argument
    with widened_choices(["refined"]):
        action = argparse.ArgumentParser().add_argument("--lr_scheduler_type", choices=choices)
    assert list(action.choices) == expected
    assert argparse._ActionsContainer.add_argument is add_argument


def test_changes_of_a_tensor_are_counted():
    tensor = torch.zeros(2)
    before = change_count(tensor)
    tensor.mul_(2)
    assert change_count(tensor) == before + 1
    with torch.inference_mode():
        assert change_count(torch.zeros(2)) is None

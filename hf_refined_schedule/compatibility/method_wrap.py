"""One way of wrapping a method, which gets along with other tools that wrap the same one."""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class MethodWrap:
    """Calls `around` in place of a method of a class, or of one object, while it is installed.

        around(call, instance, *args, **kwargs)

    `call` is the method as it was, bound to the instance. All wraps of this package are made with this class. They get along with
    other tools, which may wrap the same method before or after:

    - Another tool may hold our wrapper under its own when it is to be removed. It then stays and passes calls through. If
      the wrap is installed again, one call meets two wrappers of ours, and only the outer one calls `around`.
    - PyTorch's schedulers mark the `step` of an optimizer as theirs. The wrapper keeps the marks, and on an object it is a
      bound method, because they expect one.
    - An object that was copied while it was wrapped takes the wrapper along. It then calls the method of its class.

    Args:
        name: the name of the method.
        around: called in its place; it returns the result.
    """

    def __init__(self, name: str, around: Callable[..., Any]) -> None:
        self._name = name
        self._around = around
        self._owner: Any = None
        self._replaced: Any = None
        self._wrapper: Any = None
        self._was_own_attribute = False
        self._inside: set[int] = set()

    def install(self, owner: Any) -> None:
        """Wrap the method, above the wrappers of other tools. A wrapper of ours that is on top already stays.

        Args:
            owner: the class, whose instances are all wrapped, or one object.
        """
        method = getattr(owner, self._name)
        if method is self._wrapper:
            self._owner = owner
            return
        is_class = isinstance(owner, type)

        @functools.wraps(method)
        def wrapper(instance: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_class and instance is not owner:  # a copy
                return getattr(type(instance), self._name)(instance, *args, **kwargs)
            call = functools.partial(method, instance) if is_class else method
            if self._owner is None or id(instance) in self._inside:
                return call(*args, **kwargs)
            self._inside.add(id(instance))
            try:
                return self._around(call, instance, *args, **kwargs)
            finally:
                self._inside.discard(id(instance))

        self._owner, self._replaced = owner, method
        self._was_own_attribute = self._name in vars(owner)
        self._wrapper = wrapper if is_class else types.MethodType(wrapper, owner)
        setattr(owner, self._name, self._wrapper)

    def remove(self) -> None:
        """Stop calling `around`, and put the method back unless another tool has wrapped the wrapper."""
        owner, self._owner = self._owner, None
        if owner is None or vars(owner).get(self._name) is not self._wrapper:
            return
        if self._was_own_attribute:
            setattr(owner, self._name, self._replaced)
        else:
            delattr(owner, self._name)
        self._replaced = self._wrapper = None

    @contextmanager
    def installed(self, owner: Any) -> Iterator[None]:
        """Wrap the method while a `with` block runs.

        Args:
            owner: the class or the object.

        Yields:
            None.
        """
        self.install(owner)
        try:
            yield
        finally:
            self.remove()

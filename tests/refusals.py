"""What every refusal of the package has in common: the right kind of error, one line, and the words that help."""

from contextlib import contextmanager

import pytest


@contextmanager
def refuses(*words, error=ValueError):
    """The block raises `error` with a message of one line that holds all of `words`."""
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    assert message, "an error without a message"
    assert "\n" not in message, f"more than one line: {message!r}"
    assert len(message) < 1000, f"too long to read: {message[:200]!r}..."
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"

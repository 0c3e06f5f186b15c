"""What every refusal of the package has in common: the right kind of error, one line, and the words that help."""

from collections.abc import Callable
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


def refusal(main: Callable[[], None], words, monkeypatch, capsys) -> str:
    """The one line with which a script refuses its command line, with exit status 2 and without a traceback.

    `main` of the script runs in this process: to start one and import transformers takes seconds.
    """
    monkeypatch.setattr("sys.argv", [f"{main.__module__}.py", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    printed, error = capsys.readouterr()
    assert (ended.value.code, printed) == (2, "")
    assert "Traceback" not in error
    return error.splitlines()[-1]

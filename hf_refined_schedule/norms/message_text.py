"""Text from outside, such as paths and the contents of files, as it may appear in a message."""

from collections.abc import Iterable

MAX_SHOWN = 100
"""Characters of a path in a message, so that a message has at most 300."""

MAX_QUOTED = 40
"""Characters of a name or a value in a message."""

MAX_LISTED = 70
"""Characters of a list of names in a message."""


def shown(text: object, limit: int = MAX_SHOWN) -> str:
    """Text as it may appear in a message or a terminal.

    Args:
        text: text, or anything that `str` turns into text, such as a path.
        limit: the most characters to return.

    Returns:
        The text with its control characters escaped, and its middle left out where it is longer than `limit`.
    """
    characters = _without_middle(str(text), limit)
    return _without_middle("".join(map(_escaped, characters)), limit)


def quoted(value: object, limit: int = MAX_QUOTED) -> str:
    """A value from a file as it may appear in a message.

    Args:
        value: anything.
        limit: the most characters to return.

    Returns:
        Its `repr`, escaped and shortened.
    """
    return shown(repr(value), limit)


def listed(names: Iterable[str], limit: int = MAX_LISTED) -> str:
    """Names in a message, as many as fit.

    Args:
        names: the names.
        limit: the characters to fill, beside the count of the names left out. The first name is always there.

    Returns:
        The names in quotes, and how many more there are; "none" where there is no name.
    """
    words = [quoted(name) for name in names]
    if not words:
        return "none"
    count = 1
    while count < len(words) and len(", ".join(words[: count + 1])) <= limit:
        count += 1
    return ", ".join(words[:count]) + (f" and {len(words) - count} more" if count < len(words) else "")


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = (limit - 3) * 2 // 3  # the end of a path says more than its beginning
    return f"{text[: limit - 3 - tail]}...{text[-tail:]}"


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

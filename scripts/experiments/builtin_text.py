"""Text that ships with Python, enough to try language-model training without a download."""

import sysconfig
from pathlib import Path
from typing import Literal

BuiltinText = Literal["python_source", "english"]

NOT_LIBRARY_SOURCE = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
)


def builtin_documents(name: BuiltinText) -> list[str]:
    """The documents of a built-in text, always in the same order.

    Args:
        name: `"python_source"`, the source of CPython's own library, one document for each file (about 11 MB);
            `"english"`, the topics of Python's language reference that `help()` prints (about 0.5 MB).

    Returns:
        The documents.

    Raises:
        ValueError: for any other name, or if this Python does not ship the text.

    Example:
        >>> len("".join(builtin_documents("english"))) > 100_000
        True
    """
    if name == "python_source":
        documents = _python_source()
    elif name == "english":
        from pydoc_data.topics import topics

        documents = [topics[topic] for topic in sorted(topics)]
    else:
        raise ValueError(f"The built-in text is {name!r}, but must be python_source or english; pass one of them.")
    if not documents:
        raise ValueError(f"This Python does not ship the text {name!r}; pass a file instead.")
    return documents


def _python_source() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(
        path for path in library.rglob("*.py") if NOT_LIBRARY_SOURCE.isdisjoint(path.relative_to(library).parts)
    )
    return [text for path in paths if (text := path.read_text(encoding="utf-8", errors="replace")).strip()]

"""Tables of reports, as Markdown."""

import re

import pandas as pd

NOT_AVAILABLE = "\N{EN DASH}"
"""What a cell without a value shows."""


def markdown_table(table: pd.DataFrame) -> str:
    r"""Write a table as Markdown, with columns aligned so that the source is readable too.

    Args:
        table: the cells, already formatted where their `str` is not what the reader should see. Column names may repeat.
            A list is a cell of several lines. Line breaks in a text become spaces, and `|` is escaped, and `<` where it would
            start an HTML tag.

    Returns:
        The lines of the table, without a line break at the end.

    Example:
        >>> print(markdown_table(pd.DataFrame({"norm": ["L1", "L2"], "value": [1, 20]})))
        | norm | value |
        | ---- | ----- |
        | L1   | 1     |
        | L2   | 20    |
    """
    lines = [[_cell_text(cell) for cell in line] for line in [table.columns, *table.astype(object).to_numpy()]]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def _cell_text(cell: object) -> str:
    if isinstance(cell, list):
        return "<br>".join(map(_cell_text, cell))
    text = " ".join(str(cell).splitlines()).replace("|", r"\|")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)

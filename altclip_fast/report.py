"""A list of rows that prints as an aligned table: what `backends()`, `explain()` and `doctor` show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Table(list):
    """A list of named tuples; `str()` and the prompt show it with a header and aligned columns."""

    def __init__(self, columns: Sequence[str], rows: Iterable[NamedTuple]) -> None:
        super().__init__(rows)
        self.columns = tuple(columns)

    def __str__(self) -> str:
        lines = [self.columns, *(tuple(_cell(c) for c in r) for r in self)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(line.rstrip() for line in text)

    __repr__ = __str__


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

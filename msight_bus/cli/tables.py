"""Plain-text tables that fit a terminal: columns are omitted, then text is folded; numbers are never truncated."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

Cells = Sequence[str]
"""The cells of a row; a cell may have several lines."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: the heading, of one line or several.
        rank: columns with the highest rank are omitted first; columns with rank 0 are never omitted.
        folds_at: width in characters to which a text column may be folded if no column can be omitted any more; 0 for numbers,
            which are never folded.
        left: whether cells are aligned to the left.
    """

    title: str
    rank: int = 0
    folds_at: int = 0
    left: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a table that fit a width.

    Attributes:
        columns: all columns.
        widths: width of each shown column, by index.
        gap: spaces between two columns.
    """

    columns: Sequence[Column]
    widths: Mapping[int, int]
    gap: int

    @property
    def hidden(self) -> list[str]:
        """Headings of the omitted columns."""
        return [column.title.replace("\n", " ") for n, column in enumerate(self.columns) if n not in self.widths]

    def heading(self) -> list[str]:
        """Return the lines of the headings, the last line of each at the bottom."""
        titles = [column.title.split("\n") for column in self.columns]
        height = max(len(titles[n]) for n in self.widths)
        return self.row(["\n".join([""] * (height - len(title)) + title) for title in titles])

    def row(self, cells: Cells) -> list[str]:
        """Return the lines of a row."""
        folded = {n: self._fold(cells[n], n) for n in self.widths}
        height = max(map(len, folded.values()))
        return [
            self._line({n: lines[at] if at < len(lines) else "" for n, lines in folded.items()}) for at in range(height)
        ]

    def _fold(self, cell: str, number: int) -> list[str]:
        width = self.widths[number]
        return [part for line in cell.split("\n") for part in (chop_cells(line, width) if line else [""])]

    def _line(self, cells: Mapping[int, str]) -> str:
        padded = []
        for number, cell in cells.items():
            space = " " * (self.widths[number] - cell_len(cell))
            padded.append(cell + space if self.columns[number].left else space + cell)
        return (" " * self.gap).join(padded).rstrip()


def fit(columns: Sequence[Column], rows: Sequence[Cells], width: int | None) -> Layout:
    """Choose the columns and widths that fit ``width`` characters; ``None``: all columns, unfolded."""
    full = {
        number: max(
            cell_len(line) for cell in (column.title, *(row[number] for row in rows)) for line in cell.split("\n")
        )
        for number, column in enumerate(columns)
    }
    shown = dict(full)
    if width is None:
        return Layout(columns, shown, 2)
    while True:
        for gap in (2, 1):
            over = sum(shown.values()) + gap * (len(shown) - 1) - width
            if over <= 0:
                return Layout(columns, shown, gap)
        last = max(shown, key=lambda n: (columns[n].rank, n))
        if columns[last].rank == 0:
            break
        del shown[last]
    spare = {n: max(0, full[n] - columns[n].folds_at) if columns[n].folds_at else 0 for n in shown}
    for number in sorted(spare, key=lambda n: -spare[n]):
        cut = min(max(0, over), spare[number])
        shown[number], over = shown[number] - cut, over - cut
    return Layout(columns, shown, 1)  # if `over` is still above 0, the terminal wraps the lines


def table_lines(columns: Sequence[Column], rows: Sequence[Cells], width: int | None) -> list[Text]:
    """Return the lines of a table that fits ``width`` characters, and the headings of the omitted columns."""
    layout = fit(columns, rows, width)
    lines = [Text(line, style="bold") for line in layout.heading()]
    lines += [Text(line) for row in rows for line in layout.row(row)]
    if layout.hidden and width is not None:
        hidden = f"Not shown on {width} columns: {', '.join(layout.hidden)}."
        lines += [Text(line, style="dim") for line in textwrap.wrap(hidden, width)]
    return lines


def print_table(columns: Sequence[Column], rows: Sequence[Cells], out: Console) -> None:
    """Print a table, and the headings of the omitted columns; to a file or pipe, with all columns, unfolded."""
    for line in table_lines(columns, rows, out.width if out.is_terminal else None):
        out.print(line, soft_wrap=True)

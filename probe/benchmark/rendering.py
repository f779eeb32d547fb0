"""A benchmark on a terminal, as Markdown, and between two marks of a document."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from probe.benchmark.result import Bench
from probe.benchmark.tables import Table, heading, tables
from probe.errors import NotAvailable, UsageError
from probe.visible import visible

BEGIN = "<!-- begin of probe bench: written by `probe bench --from … --into …`, never by hand -->"
END = "<!-- end of probe bench -->"


def markdown(bench: Bench) -> str:
    """Return the tables as Markdown, the machine named above them."""
    return "\n\n".join([heading(bench), *map(_markdown, tables(bench))]) + "\n"


def print_tables(bench: Bench, console: Console) -> None:
    """Print the tables."""
    _line(console, heading(bench))
    for table in tables(bench):
        drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(table.columns):
            words = index < table.words and column != "tokens"
            drawn.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=words)
        before = ""
        for row in table.rows:
            # A length stands once, above its rows.
            first = "" if row[0] == before and table.columns[0] == "tokens" else row[0]
            drawn.add_row(*(escape(visible(cell)) for cell in (first, *row[1:])))
            before = row[0]
        console.print()
        _line(console, table.title, style="bold")
        console.print(drawn)
        for note in table.notes:
            _line(console, note)


def write_between_marks(path: Path, bench: Bench) -> None:
    """Put the tables between the two marks of a document.

    Raises NotAvailable where the document is not there, UsageError where it does not have each mark once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotAvailable(f"{path} cannot be read: {error.strerror}") from error
    path.write_text(between_marks(text, markdown(bench), str(path)), encoding="utf-8")


def between_marks(text: str, new: str, name: str) -> str:
    """Return a document with other text between its marks; raises UsageError where it does not have each once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(f"{name} needs one line\n{BEGIN}\nand after it one line\n{END}")
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n\n{new}\n{END}{text.partition(END)[2]}"


def _markdown(table: Table) -> str:
    lines = [f"**{table.title}**", "", _row(table.columns)]
    lines.append(_row(tuple("---" if index < table.words else "---:" for index in range(len(table.columns)))))
    lines += [_row(row) for row in table.rows]
    return "\n".join([*lines, "", " ".join(table.notes)])


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(visible(cell).replace("|", "\\|") for cell in cells) + " |"


def _line(console: Console, text: str, style: str = "default") -> None:
    console.print(visible(text), style=style, markup=False, highlight=False, soft_wrap=not console.is_terminal)

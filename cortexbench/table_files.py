"""Tables in files: CSV, Markdown, and LaTeX for the package booktabs."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from ..files import replacing
from .tables import Table

FORMATS = ("csv", "md", "tex")
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "–": "--"}  # noqa: RUF001


def write_tables(out: Path, tables: Mapping[str, Table]) -> None:
    """Write ``tables/NAME.csv``, ``.md`` and ``.tex`` of each table; the files of a table without rows are removed."""
    for name, rows in tables.items():
        for suffix in FORMATS:
            file = out / "tables" / f"{name}.{suffix}"
            if rows:
                with replacing(file) as temporary:
                    temporary.write_text(table_text(rows, suffix), encoding="utf-8")
            else:
                file.unlink(missing_ok=True)


def table_text(rows: Table, suffix: str) -> str:
    """Return a table with at least one row in one of `FORMATS`.

    >>> rows = [{"a_b": "5 %", "c": "x, y|z"}]
    >>> table_text(rows, "csv")
    'a_b,c\\n5 %,"x, y|z"\\n'
    >>> print(table_text(rows, "md"), end="")
    | a_b | c |
    |---|---|
    | 5 % | x, y\\|z |
    >>> print(table_text(rows, "tex"), end="")
    \\begin{tabular}{ll}
    \\toprule
    a\\_b & c \\\\
    \\midrule
    5 \\% & x, y|z \\\\
    \\bottomrule
    \\end{tabular}
    """
    lines = [[str(value) for value in line] for line in (rows[0], *(row.values() for row in rows))]
    if suffix == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()
    if suffix == "md":
        body = ["| " + " | ".join(value.replace("|", r"\|") for value in line) + " |" for line in lines]
        body.insert(1, "|" + "---|" * len(lines[0]))
    else:
        columns = "".join("l" if isinstance(value, str) else "r" for value in rows[0].values())
        body = [" & ".join("".join(_LATEX.get(c, c) for c in value) for value in line) + r" \\" for line in lines]
        start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule"]
        body = [*start, *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join(body) + "\n"

"""The rows of a run as Markdown, so that nobody types a number: `python -m benchmarks.table FILE [--into DOC...]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogue import PARTS

BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.table) -->", "<!-- benchmarks: end -->"


def number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def limit(row: Mapping[str, Any]) -> str:
    return f"{'≤' if 'at_most' in row else '≥'} {row['limit']:g}"


def spread(row: Mapping[str, Any]) -> str:
    """Quartiles, or nothing where a value was counted."""
    low, high = row["spread"] or (None, None)
    return "" if low == high else f"{number(low)} to {number(high)}"


def title(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{PARTS[part].title}{f': {rest}' if rest else ''}" if part in PARTS else name


def markdown(rows: Sequence[Mapping[str, Any]], brief: bool = False) -> str:
    """A table, with the machines under it. brief: without the sentence on each row."""
    names = ["part", "what", "measured", "quartiles", "limit", "met", *([] if brief else ["in detail"])]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [
            f"`{row['name']}`",
            title(row["name"]),
            f"**{number(row['value'])}**",
            spread(row),
            limit(row),
            "yes" if row["ok"] else "**no**",
            row["detail"].get("summary", ""),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells[: len(names)])} |")
    machines = dict.fromkeys(_machine(row["detail"]["machine"]) for row in rows if "machine" in row["detail"])
    return "\n".join([*lines, "", *(f"Measured on: {machine}." for machine in machines)]) + "\n"


def _machine(values: Mapping[str, Any]) -> str:
    return (
        f"{values['cpu']} ({values['instructions']}), {values['cores']} cores of which one thread was used, "
        f"{values['dtype']}, torch {values['torch']}"
    )


def plain(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a terminal."""
    lines = [f"{'part':18} {'measured':>9} {'limit':>8}  met  quartiles"]
    for row in rows:
        met = "yes" if row["ok"] else "NO"
        lines.append(f"{row['name']:18} {number(row['value']):>9} {limit(row):>8}  {met:3}  {spread(row)}".rstrip())
        lines.append(f"    {row['detail'].get('summary', '')}")
    return "\n".join(lines) + "\n"


def put_into(document: Path, table: str) -> None:
    """Replace what stands between the two marks. Raises ValueError where a document has none."""
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no place for the table; put the lines {BEGIN!r} and {END!r} into it.")
    document.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="rows of a run as Markdown")
    parser.add_argument("file", metavar="FILE", type=Path, help="what `python -m benchmarks --json FILE` wrote")
    parser.add_argument("--into", metavar="DOC", type=Path, nargs="+", default=[], help="documents to put it into")
    parser.add_argument("--brief", action="store_true", help="without the sentence on each row")
    options = parser.parse_args(arguments)
    try:
        table = markdown(json.loads(options.file.read_text(encoding="utf-8")), options.brief)
        for document in options.into:
            put_into(document, table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.file}: {error}")
    if not options.into:
        sys.stdout.write(table)


if __name__ == "__main__":
    main()

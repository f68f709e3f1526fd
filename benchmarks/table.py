"""The table that the README shows, from the newest line of each figure in results/. Measures nothing."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ROOT, Row

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
README, DOCS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
HEAD = "| # | ours | against | size | ours | peer | ratio (low, high) | aim | parity | of peak |"


def newest(folder: Path = RESULTS) -> list[Row]:
    """The last line of every figure that has a row of the table, in the table's order, whatever machine it is of."""
    found: dict[tuple, Row] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = _parsed(line)
            if row is not None:
                key = tuple(row.get(name) for name in ("row", "size", "what", "against"))
                if key not in found or found[key]["date"] <= row["date"]:
                    found[key] = row
    return sorted(found.values(), key=lambda row: (row["row"], _parameters(row["size"])))


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table for every machine, with what it was measured at under it."""
    by_machine: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_machine.setdefault(row["machine"], []).append(row)
    return "\n\n".join(_one_machine(machine, found) for machine, found in by_machine.items())


def put_table(text: str, shown: str) -> str:
    """A page with the table between its markers. ValueError where it has no such place, or several."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"a page needs {BEGIN} and {END} once each")
    return f"{before}{BEGIN}\n{shown}\n{END}{after}"


def write_pages() -> None:
    """Put the newest figures into the pages that show them: those with an aim into the README, all into docs/."""
    rows = newest()
    for page, shown in ((README, [row for row in rows if row.get("aim") is not None]), (DOCS, rows)):
        page.write_text(put_table(page.read_text(encoding="utf-8"), table(shown)), encoding="utf-8")


def _parsed(line: str) -> Row | None:
    """A figure of the table; None for a torn line and for lines of other kinds."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("row"), int) else None


def _one_machine(machine: str, rows: list[Mapping[str, Any]]) -> str:
    lines = [HEAD, "|" + "---|" * HEAD.count(" | ") + "---|", *map(_line, rows)]
    dates, commits = sorted(row["date"][:10] for row in rows), dict.fromkeys(row["commit"] for row in rows)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    threads = sorted({row["threads"] for row in rows if row.get("threads")})
    torch = f"torch with {', '.join(map(str, threads))} threads; " if threads else ""
    return "\n".join([*lines, "", f"{machine}; {torch}{when}; commit {', '.join(commits)}."])


def _line(row: Mapping[str, Any]) -> str:
    spread = "" if row["low"] == row["high"] else f" ({_number(row['low'])}, {_number(row['high'])})"
    unit = row.get("unit", "")
    cells = (
        row["row"],
        row.get("what", ""),
        row.get("against", ""),
        row["size"],
        f"{_number(row['ours'])} {unit}",
        f"{_number(row['peer'])} {unit}",
        f"**{_number(row['ratio'])}**{spread}",
        _number(row.get("aim")),
        "–" if row["parity"] is None else f"{row['parity']:.0e}",
        "–" if row["peak_share"] is None else f"{row['peak_share']:.0%}",
    )
    return "| " + " | ".join(str(cell).strip() for cell in cells) + " |"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _parameters(size: str) -> float:
    """`1M`, `0.6B` as numbers; other sizes come last."""
    unit = {"M": 1e6, "B": 1e9}.get(size[-1:])
    try:
        return float(size[:-1]) * unit if unit else float("inf")
    except ValueError:
        return float("inf")

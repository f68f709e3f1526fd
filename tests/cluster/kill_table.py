"""The kill table out of results/proof.jsonl: `python -m tests.cluster.kill_table` prints it in Markdown."""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.proof import RESULTS

COLUMNS = ("struck", "runs whole", "stages", "seconds to recover", "seconds in all", "shards tried again", "missing")


def table(results: Path) -> str:
    """A row for every kind, from the newest line of each moment; medians with the largest in brackets."""
    newest: dict[str, dict[str, Any]] = {}
    for line in results.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if re.fullmatch(r"kill_\w+_\d", record["piece"]):
            newest[record["piece"]] = record["figures"]
    kinds = defaultdict(list)
    for piece, figures in newest.items():
        kinds[piece.removeprefix("kill_").rpartition("_")[0].replace("_", " ")].append(figures)
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(kind, found) for kind, found in kinds.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(kind: str, found: list[dict[str, Any]]) -> tuple[str, ...]:
    stages = sorted({f["stage"] for f in found})
    recovered = [f["recovered_s"] for f in found if f["recovered_s"] is not None]
    return (
        kind,
        f"{len(found)}",
        ", ".join(stages),
        _spread(recovered),
        _spread([f["seconds"] for f in found]),
        f"{sum(f['failed_shards'] for f in found)}",
        f"{sum(f['missing'] for f in found)}",
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({max(values):.0f})" if values else "-"


if __name__ == "__main__":
    print(table(RESULTS))

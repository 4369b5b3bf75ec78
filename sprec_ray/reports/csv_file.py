"""Rows as a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprec_ray.storage.artifacts import write_text


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write mappings with the same keys as a CSV file with a header; None and NaN are empty. Atomic."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    writer.writerows([_field(value) for value in row.values()] for row in rows)
    write_text(path, text.getvalue())


def _field(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value

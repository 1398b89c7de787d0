"""The benchmark of the ledger: its rows, and every step at small size, on a disk instead of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from augment.ledger.keys import KEY_ROWS
from augment.ledger.parts import ledger_parts
from augment.ledger.reading import read_ledger
from benchmarks import ledger


def test_every_step_at_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "ledger")
    monkeypatch.setattr(ledger, "URL", url)
    rows, rows_per_part = 1000, 200
    figures = {}
    for step in (ledger.write, ledger.listing, ledger.looking):
        figures |= step(rows, rows_per_part)
    found = list(read_ledger(url))
    assert len(found) == 1008 and len({row.key for row in found}) == rows
    assert all(row.request_key in row.key and len(row.text) == ledger.TEXT_BYTES for row in found)
    assert figures["parts"] == figures["new_parts"] == len(ledger_parts(url)) == 5
    assert KEY_ROWS.itemsize < figures["keys_bytes_per_row"] < 40 < figures["part_bytes_per_row"]
    figures |= ledger.compacting(rows, rows_per_part)
    assert figures["compact_parts_after"] == len(ledger_parts(url)) and len(list(read_ledger(url))) == rows

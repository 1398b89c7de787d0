"""The gates' verdicts on made candidates are pinned: what makes gates faster changes none."""

from __future__ import annotations

import json

from tests.gate_candidates import VERDICTS, verdicts


def test_verdicts_are_those_of_before() -> None:
    assert verdicts() == json.loads(VERDICTS.read_text(encoding="utf-8"))

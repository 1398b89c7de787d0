"""The gates' verdicts on made candidates are pinned, and what makes gates faster finds what it stands in for."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from augment.selection.word_runs import among
from augment.selection.words import WORD, words_as_they_are
from tests.gate_candidates import VERDICTS, verdicts


def test_verdicts_are_those_of_before() -> None:
    assert verdicts() == json.loads(VERDICTS.read_text(encoding="utf-8"))


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_numbers_are_found_among_known_ones(numbers: list[int], known: list[int]) -> None:
    of, others = np.array(numbers, np.uint64), np.array(sorted(known), np.uint64)
    assert among(of, others).tolist() == np.isin(of, others).tolist()


@given(st.text(st.one_of(st.characters(), st.sampled_from("ab _é東か한ไ\u0301\u0323ि٣"))))
def test_words_are_those_of_the_whole_expression(text: str) -> None:
    assert words_as_they_are(text) == WORD.findall(text)

"""How many documents the score stage's step takes together."""

from __future__ import annotations

from difficulty.config import DifficultyConfig
from difficulty.transforms import BATCH_BYTES, _ScoreFn
from sharding.records.types import Document


def test_documents_are_scored_together_up_to_so_many_bytes(byte_tokenizer: str) -> None:
    """Of text as it is stored, not of characters: one of these has three bytes."""
    fn = _ScoreFn(DifficultyConfig(scorer="rehearsal"), byte_tokenizer)
    fn.setup()
    fn.start_bundle()
    waiting = []
    for number in range(4):
        list(fn.process(Document(doc_id=str(number), text="日" * (BATCH_BYTES // 6 + 1), origin="here"), ""))
        waiting.append(len(fn._waiting))
    assert waiting == [1, 0, 1, 0]
    list(fn.finish_bundle())

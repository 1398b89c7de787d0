"""Where a document is cut into segments: the spans that are thought about.

Called by the score stage with the training tokens of a whole document. Cuts fall between tokens, never inside a
character, and at the best place near the cap: a paragraph's end, else a line's, else a sentence's, else at white
space, else anywhere.
"""

import re

import numpy as np

MIN_SEGMENT_TOKENS = 16
_INSIDE_CHARACTER = -1
_ANYWHERE, _SPACE, _SENTENCE, _LINE, _PARAGRAPH = range(0, 10, 2)
_BEFORE_INDENTATION = 1  # on top: a cut right after the newline, not within the white space that begins the next line


def _any_of(characters: str) -> bytes:
    return b"(?:" + b"|".join(re.escape(character.encode()) for character in characters) + b")"


_SENTENCE_END = re.compile(
    rb"""[.!?]["')\]]*(?=\s)|""" + _any_of("。！？｡") + _any_of("」』”’）") + b"*"  # the latter need no space after
)


def cut_segments(byte_ends: np.ndarray, text_bytes: bytes, segment_tokens: int) -> list[tuple[int, int]]:
    """Cuts a document into segments of at most `segment_tokens` tokens, each of them valid text.

    The cut is looked for in the second half of what the cap allows, the best kind first and the latest of its kind; a
    last segment is at least a quarter of the cap, unless the document is shorter than the cap.

    Args:
        byte_ends: (num_tokens,) int64, where each token ends in `text_bytes`.
        text_bytes: the document in UTF-8.
        segment_tokens: the cap, at least 16 (a character takes up to four tokens).

    Returns:
        The token ranges [start, end) in order; together all tokens, and none for a document without tokens.
    """
    if segment_tokens < MIN_SEGMENT_TOKENS:
        raise ValueError(f"segment_tokens is {segment_tokens}; at least {MIN_SEGMENT_TOKENS}")
    num_tokens = len(byte_ends)
    if num_tokens and byte_ends[-1] != len(text_bytes):
        raise ValueError(f"tokens end at byte {byte_ends[-1]} of a text of {len(text_bytes)} bytes")
    kinds = _cut_kinds(byte_ends, text_bytes) if num_tokens > segment_tokens else np.empty(0, np.int8)
    segments = []
    start = 0
    while num_tokens - start > segment_tokens:
        last = min(start + segment_tokens, num_tokens - segment_tokens // 4)
        end = _best_cut(kinds, start + segment_tokens // 2, last)
        segments.append((start, end))
        start = end
    if start < num_tokens:
        segments.append((start, num_tokens))
    return segments


def _best_cut(kinds: np.ndarray, first: int, last: int) -> int:
    """The latest of the best cuts with `first` to `last` tokens before it; `kinds[i]` is the cut after token i."""
    window = kinds[first - 1 : last][::-1]
    return last - int(window.argmax())


def _cut_kinds(byte_ends: np.ndarray, text_bytes: bytes) -> np.ndarray:
    """What a cut after each token would be: (num_tokens,) int8, the higher the better, -1 inside a character."""
    text = np.frombuffer(text_bytes, np.uint8)
    size = len(text)
    is_newline = text == ord("\n")
    is_space = is_newline | (text == ord(" ")) | (text == ord("\t")) | (text == ord("\r"))
    last_solid = np.maximum.accumulate(np.where(is_space, -1, np.arange(size)))
    newlines_until = np.concatenate([[0], np.cumsum(is_newline)])
    ends_sentence = np.zeros(size, bool)
    ends_sentence[[match.end() - 1 for match in _SENTENCE_END.finditer(text_bytes)]] = True

    cut = byte_ends
    before = np.maximum(cut - 1, 0)
    after = np.minimum(cut, size - 1)
    # Of the newlines in the white space around a cut only those before it count: the latest cut has them all.
    newlines_before = newlines_until[cut] - newlines_until[last_solid[before] + 1]
    kinds = np.full(len(cut), _ANYWHERE, np.int8)
    kinds[is_space[before] | is_space[after]] = _SPACE
    kinds[ends_sentence[last_solid[before]] & (last_solid[before] >= 0)] = _SENTENCE
    kinds[newlines_before == 1] = _LINE
    kinds[newlines_before >= 2] = _PARAGRAPH
    kinds[is_newline[before]] += _BEFORE_INDENTATION
    kinds[(cut < size) & ((text[after] & 0xC0) == 0x80)] = _INSIDE_CHARACTER
    return kinds

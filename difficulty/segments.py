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


# Two patterns rather than one: a pattern that begins with a set of bytes is looked for ten times as fast.
_SENTENCE_END = re.compile(rb"""[.!?]["')\]]*(?=\s)""")
_WIDE_SENTENCE_END = re.compile(_any_of("。！？｡") + _any_of("」』”’）") + b"*")  # needs no space after

_WHITE_SPACE = np.zeros(256, bool)
_WHITE_SPACE[list(b" \n\t\r")] = True


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
    is_space = _WHITE_SPACE[text]
    ends_sentence = np.zeros(len(text), bool)
    ends_sentence[_sentence_ends(text_bytes)] = True

    cut = byte_ends
    before = np.maximum(cut - 1, 0)
    after = np.minimum(cut, len(text) - 1)
    kinds = np.full(len(cut), _ANYWHERE, np.int8)
    kinds[is_space[after]] = _SPACE
    kinds[ends_sentence[before]] = _SENTENCE
    behind_space = np.flatnonzero(is_space[before] & (cut > 0))
    kinds[behind_space] = _kinds_behind_space(text, is_space, ends_sentence, before[behind_space])
    kinds[(cut < len(text)) & ((text[after] & 0xC0) == 0x80)] = _INSIDE_CHARACTER
    return kinds


def _kinds_behind_space(
    text: np.ndarray, is_space: np.ndarray, ends_sentence: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """The kinds of cuts behind white space, whose last byte is at `before`: by what the white space holds so far."""
    spaces = np.flatnonzero(is_space)
    place = np.searchsorted(spaces, before)
    newlines_until = np.concatenate(([0], np.cumsum(text[spaces] == ord("\n"))))
    opens_run = np.diff(spaces, prepend=-2) > 1
    first_of_run = np.maximum.accumulate(np.where(opens_run, np.arange(len(spaces)), 0))[place]
    # Of the newlines in the white space around a cut only those before it count: the latest cut has them all.
    newlines_before = newlines_until[place + 1] - newlines_until[first_of_run]
    last_solid = spaces[first_of_run] - 1
    kinds = np.full(len(before), _SPACE, np.int8)
    kinds[ends_sentence[last_solid] & (last_solid >= 0)] = _SENTENCE
    kinds[newlines_before == 1] = _LINE
    kinds[newlines_before >= 2] = _PARAGRAPH
    kinds[text[before] == ord("\n")] += _BEFORE_INDENTATION
    return kinds


def _sentence_ends(text_bytes: bytes) -> list[int]:
    """The last byte of what ends each sentence."""
    ends = [match.end() - 1 for match in _SENTENCE_END.finditer(text_bytes)]
    if not text_bytes.isascii():
        ends += [match.end() - 1 for match in _WIDE_SENTENCE_END.finditer(text_bytes)]
    return ends

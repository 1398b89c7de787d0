"""Within its segment, behind what the generator was shown of it: A₁ ⟨thought A⟩ A₂."""

from __future__ import annotations

from sharding.packing.layouts import beside_segment, within_parts


def thoughts_at(num_tokens: int, shown_tokens: int) -> int:
    """Behind what the generator saw.

    Raises:
        ValueError: it saw more tokens than there are.
    """
    if not 0 <= shown_tokens <= num_tokens:
        raise ValueError(f"thoughts behind {shown_tokens} of {num_tokens} tokens of a segment")
    return shown_tokens


in_order = within_parts
belongs = beside_segment

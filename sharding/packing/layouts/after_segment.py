"""After its segment: A ⟨thought A⟩ B ⟨thought B⟩."""

from __future__ import annotations

from sharding.packing.layouts import beside_segment, within_parts


def thoughts_at(num_tokens: int, shown_tokens: int) -> int:
    """At its end."""
    return num_tokens


in_order = within_parts
belongs = beside_segment

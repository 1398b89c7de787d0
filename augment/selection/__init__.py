"""Selection: the generations of a segment become candidates, each kept or rejected with its reasons.

    request + ledger rows ──► candidates ──► judging: gates ──► valuing ──► keeping

One module a step, all pure but `transforms`, which the select stage and the pilot of a plan apply. Every candidate ends
kept, or rejected with exactly one first reason.
"""

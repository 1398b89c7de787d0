"""The ledger: every finished generation, in immutable parts, never bought twice."""

"""What all pipelines share of Beam: coders, parts, joins, counts and shuffles."""

import sharding.beam.coders  # noqa: F401  registers them

"""What all pipelines share of Beam: coders, parts, joins, counts and shuffles."""

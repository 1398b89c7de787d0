"""Pipelines: the config, the four stages as Beam pipelines, and the command line."""

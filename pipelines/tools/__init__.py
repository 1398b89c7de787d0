"""Tools beside the flow: the conformance job, the demo, the reference of the config."""

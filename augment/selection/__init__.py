"""Selection: the generations of a segment become candidates, each kept or rejected with its reasons."""

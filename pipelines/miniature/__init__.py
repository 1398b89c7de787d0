"""The miniature: a made-up world in which the whole mill runs on a laptop and shows whether its thoughts help.

    world ─► documents ─► the four stages, with `scorer` and `teacher` ─► arms ─► students ─► `evaluator`

`world` says what is true and writes it down; `run` puts the parts together for `make evidence`, by
configs/miniature.yaml.
"""

"""Ablation: what a small model learns from each arm. `pipelines.ablate` runs it; knows nothing of configs of runs.

    arm × seed ──► training: a student, from the arm's own shards ──► OUTPUT/ablation/ARM/SEED/curve.json
                     └► evaluators, every so many tokens
    curves ──► verdict: tokens to the target, ratios between arms ──► OUTPUT/ablation/ablation.json

`student`, `generation`, `training` and some of the evaluators import torch; the others don't.
"""

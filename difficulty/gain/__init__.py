"""Gain: what thinking is worth, learned from a pilot that tried tiers at random.

features    numbers and kind of text that a scored segment's own record holds
components  the arithmetic: a linear model with a variance for each group of terms
tried       what a pilot observed, as arrays
fitting     from a pilot's observations to a model, cross-fitted, and a report
report      what was learned, in figures and words
model       what a worker needs: from scored segments to the expected gain of every tier
"""

"""Experiment settings: one base, `alexnet.py`, and small deltas."""

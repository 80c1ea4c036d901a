"""One base config, `alexnet.py`, and small deltas from it."""

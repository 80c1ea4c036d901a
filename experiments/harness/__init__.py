"""Trains the nets of an experiment and compares its arms."""

"""Layers of nets other than the paper's."""

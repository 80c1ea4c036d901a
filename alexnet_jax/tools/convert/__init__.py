"""Weights in and out: other systems' files as runs, and runs as their files."""

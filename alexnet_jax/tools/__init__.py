"""Commands on top of runs."""

"""Who computes what: layouts, collectives, wrappers of the step."""

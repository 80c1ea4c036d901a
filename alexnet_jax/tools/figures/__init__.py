"""Pictures of a net."""

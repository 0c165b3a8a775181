"""Everything that changes weights, but for the models."""

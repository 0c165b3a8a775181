"""Any photo as the pixels that a model sees."""

"""How commands start and fail, on what device, and what a person sees meanwhile."""

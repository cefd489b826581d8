"""Routers beyond token choice (core.model.routing); a module named after its kind is found by that name."""

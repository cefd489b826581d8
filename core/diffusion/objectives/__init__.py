"""Objectives beyond masked diffusion (core.diffusion.objective); a module named after its kind is found by that name."""

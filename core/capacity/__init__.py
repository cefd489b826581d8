"""Planner: memory and step time of every layout on a cluster."""

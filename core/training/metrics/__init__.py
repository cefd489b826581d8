"""Metrics that are measured at every validation (core.records.metrics); each module registers its own."""

"""Tests side by side take one thread each, as a sweep's workers do: threads that outnumber cores wait for one another."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

"""The live page of a study: a poller of its records and queue, and a local server."""

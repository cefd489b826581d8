"""Other programs' logs as a study: rows, runs, and the design that judges need."""

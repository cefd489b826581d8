"""The research agenda: one file per question, and the command line."""

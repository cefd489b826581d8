"""The live page of a study: what is read as it changes, and the server that shows it on this machine."""

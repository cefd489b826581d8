"""One run: model, objective, data, training, and the record of it."""

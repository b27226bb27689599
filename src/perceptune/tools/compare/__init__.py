"""`perceptune compare`: methods, seeds and settings on equal terms, selected on validation data, tested once."""

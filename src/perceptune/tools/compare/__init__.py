"""`perceptune compare`: methods, seeds and settings on equal terms, chosen on validation data, tested once."""

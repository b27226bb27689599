"""Data sets looked after: validated before training, converted, synthesised."""

"""Recognition of a data set by its path: which reader reads it, with which options."""

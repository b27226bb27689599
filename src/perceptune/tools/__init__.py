"""Tools of the command line beside training and evaluation: comparisons, reports, data tools, checks."""

"""What the command line offers beside training and evaluation: comparisons, reports, data tools, checks."""

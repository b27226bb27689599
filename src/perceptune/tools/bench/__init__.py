"""`perceptune bench`: ours against the literal method, prompt tuning, text-only generation and the machine's limit."""

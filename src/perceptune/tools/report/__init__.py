"""`perceptune report`: one page of a run, of several side by side, or of a comparison."""

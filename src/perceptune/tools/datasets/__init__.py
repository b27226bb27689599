"""Looking after data: checking it before training, converting it, and making some up."""

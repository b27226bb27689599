"""Writing a run in LLaVA's layout, which transformers loads without this package."""

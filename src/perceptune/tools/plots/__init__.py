"""Charts and heat maps as PNG files, by matplotlib (extra `plots`)."""

"""Media, data sets (`tasks`), metrics and what all readers of rows share; nothing here knows a model."""

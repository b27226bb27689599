"""`perceptune serve`: runs behind OpenAI's wire format, safe by default. Needs the extra `serve`."""

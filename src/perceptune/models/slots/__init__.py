"""The backbone `splice`: frozen encoders and a frozen decoder-only LM, joined at slots."""

"""The backbone `splice`: frozen encoders feed slots of a frozen decoder-only LM."""

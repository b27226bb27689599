"""Methods on a frozen LM with slots, one file each; `_injection.py` has connectors and soft prompts.

An extension imports from `perceptune.methods.slots.base`.
"""

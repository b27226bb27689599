"""Frozen parts with a method on them, one folder for each backbone; run folders; weights of other projects."""

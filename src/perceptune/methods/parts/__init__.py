"""Trained parts and estimators that methods of both kinds share."""

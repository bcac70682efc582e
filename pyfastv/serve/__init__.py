"""Serving a model to several clients at once."""

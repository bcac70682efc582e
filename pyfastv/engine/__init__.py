"""Requests to a model: one by one, in conversations, side by side, and what comes of them."""

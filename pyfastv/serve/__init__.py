"""``pyfastv serve``: OpenAI's HTTP API over several slots of one model, with a page to try it.

Needs the extra ``serve``; nothing here is imported by ``import pyfastv``.
"""

"""The cheapest setting whose answers stay those of the model unpruned, on pictures and questions of one's own:
``pyfastv tune``. Needs no right answers."""

from .candidates import candidates, turbo_candidates, why_no_turbo
from .distribution import Divergence, Reference, compare, refer
from .search import Sample, Standing, search

__all__ = [
    "Divergence",
    "Reference",
    "Sample",
    "Standing",
    "candidates",
    "compare",
    "refer",
    "search",
    "turbo_candidates",
    "why_no_turbo",
]

"""What Prometheus asks for at ``/metrics``."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engine.job_pool import JobPool

__all__ = ["Measured", "Metrics"]

_GAUGES = {
    "slots": "Conversations that can be computed at a time.",
    "active": "Slots at work.",
    "waiting": "Requests that wait for a slot.",
}
_COUNTERS = {
    "requests": "Requests that were queued.",
    "finished": "Requests that were answered.",
    "cancelled": "Requests whose client left.",
    "failed": "Requests that ended in an error of the computation.",
    "prompt_tokens": "Tokens of prompts, visual tokens included.",
    "cached_tokens": "Of these, tokens that were still in a slot.",
    "generated_tokens": "Tokens of answers.",
    "pictures": "Pictures in prompts.",
    "visual_tokens": "Visual tokens in prompts.",
    "visual_kept": "Of these, tokens that the last layers see.",
}
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PATHS = {
    "/",
    "/health",
    "/metrics",
    "/openapi.json",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/props",
    "/slots",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/completion",
    *(f"/api/{name}" for name in ("chat", "generate", "tags", "show", "ps", "version")),
}


class Metrics:
    """The numbers of one server."""

    def __init__(self, pool: JobPool) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_OfPool(pool))
        self.responses = Counter(
            "pyfastv_http_responses",
            "Responses by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.first_piece = Histogram(
            "pyfastv_time_to_first_token_seconds",
            "From the arrival of a whole request to the first piece of its answer, waiting included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "pyfastv_request_seconds",
            "From a request's arrival to the end of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _OfPool(Collector):
    def __init__(self, pool: JobPool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        stats = self._pool.stats()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"pyfastv_{name}", text, stats.get(name, 0.0))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"pyfastv_{name}", text, stats.get(name, 0.0))


class Measured:
    """ASGI middleware that counts responses, and takes the time of those to POST."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        # other paths are the client's to choose: they must not become series
        path = scope["path"] if scope["path"] in _PATHS else "other"

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responses.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            await self._app(scope, receive, count)
        finally:
            if scope["method"] == "POST" and path != "other":
                self._metrics.duration.observe(time.perf_counter() - begin)

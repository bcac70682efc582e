"""The application: everything between a socket and the pool."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from .._about import __version__
from ..engine.job_pool import JobPool
from .access_log import AccessLog
from .addresses import Addresses
from .errors import add_handlers
from .guard import Guard
from .metrics import Measured, Metrics
from .page import page
from .routes import make_router
from .settings import Settings

__all__ = ["make_app"]

# that its clients send from pages
_ANTHROPIC_HEADERS = (
    "X-Api-Key",
    "Anthropic-Version",
    "Anthropic-Beta",
    "Anthropic-Dangerous-Direct-Browser-Access",
)
_SPARE = 16  # requests that are being read while all places of the pool are taken


def make_app(pool: JobPool, settings: Settings) -> FastAPI:
    """An ASGI application over a pool, which stays the caller's to close."""
    app = FastAPI(
        title="pyfastv",
        version=__version__,
        description="OpenAI's API over quantized vision-language models, with pictures made cheap.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.settings = settings
    metrics = Metrics(pool)
    add_handlers(app)
    app.include_router(make_router(pool, settings, metrics))
    app.add_route("/", page, include_in_schema=False)
    # the last one added is the first to see a request
    app.add_middleware(Guard, settings=settings, in_flight=pool.n_slots + pool.queue + _SPARE)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Requested-With", *_ANTHROPIC_HEADERS],
            max_age=600,
        )
    app.add_middleware(Measured, metrics=metrics)
    app.add_middleware(Addresses)
    if settings.access_log is not None:
        app.add_middleware(AccessLog, write=settings.access_log)
    return app

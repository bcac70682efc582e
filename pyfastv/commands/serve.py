"""``pyfastv serve``"""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import click

from .._checks import real
from ..errors import Error, OutOfMemoryError
from .bars import bar
from .options import runner_arguments, schedule_options, shows_progress, to_setting
from .streams import tell

__all__ = ["serve"]

_ROOM = 16 * 2**20  # bytes that have to be left when the model is loaded
_NEEDED = {"fastapi", "uvicorn", "prometheus_client", "starlette", "pydantic", "httpcore2"}


@click.command(context_settings={"show_default": True})
@click.option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0: all, then set --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="0: any that is free.")
@click.option("--slots", type=click.IntRange(1, 64), default=4, help="Conversations computed at a time.")
@click.option(
    "--queue", type=click.IntRange(0, 10_000), default=32, help="Requests that may wait for a slot."
)
@click.option("--alias", metavar="NAME", help="Of the model, for clients.  [default: the name of its file]")
@click.option("--api-key", envvar="PYFASTV_API_KEY", show_envvar=True, help="Ask for this key.")
@click.option(
    "--cors-origin", multiple=True, metavar="ORIGIN", help="Let pages of this site read; *: of all."
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="Answer for this host name, too.")
@click.option("--allow-remote-images", is_flag=True, help="Fetch pictures by http(s), from public addresses.")
@click.option(
    "--allow-local-files",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Read pictures by file:// from this folder.",
)
@click.option("--max-body-mb", type=click.IntRange(1, 4096), default=32, help="Largest request, in MiB.")
@click.option(
    "--max-images", type=click.IntRange(0, 1000), default=16, help="Most pictures and videos in a request."
)
@click.option(
    "--max-frames", type=click.IntRange(0, 512), default=64, help="Most frames of a request's videos."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 1_000_000_000),
    default=32_000_000,
    help="Of a picture or frame; pictures with up to four times as many (89 million at most) are scaled down to it.",
)
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Most tokens in an answer.  [default: the context of a slot]"
)
@click.option(
    "--sse-ping-interval",
    type=click.FloatRange(min=0.0),
    default=10.0,
    metavar="SECONDS",
    help="Comment in a stream while nothing else is sent, so that no proxy gives up; 0: none.",
)
@click.option("--access-log", is_flag=True, help="A line on stderr for each request.")
@click.option("--temp", type=float, default=0.8, help="Temperature of silent requests.")
@schedule_options
def serve(**options: Any) -> None:
    """Serve the model over OpenAI's API, with a page to try it at /.

    Clients use http://127.0.0.1:8080/v1 as their base URL. -c is the context of each slot; 0 is
    what the model was trained for, at most 8192.
    """
    with _ended_by_sigterm():
        _serve(options)


def _serve(options: dict[str, Any]) -> None:
    setting = to_setting(options)
    real("temp", options["temp"], "a number from 0 to 100", 0.0, 100.0)
    real("sse-ping-interval", options["sse_ping_interval"], "a number of seconds; 0: none", 0.0)
    try:
        from ..engine import job_pool
        from ..serve import app, server, settings
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        raise Error(f"pyfastv serve needs {missing}: pip install 'pyfastv[serve]'") from None
    with server.listen(options["host"], options["port"]) as listening:
        told = _settings(settings, listening.getsockname()[0], options)
        arguments = runner_arguments(options)
        with bar("Loading", shows_progress(options)) as loading:
            slots = job_pool.JobPool(
                **arguments,
                slots=options["slots"],
                queue=options["queue"],
                name=options["alias"] or None,
                **setting.options(),
                max_pixels=settings.hard_pixels(options["max_pixels"]),
                shrink_pixels=options["max_pixels"],
                progress=loading,
            )
        try:
            _check_room()
            application = app.make_app(slots, told)
            with suppress(KeyboardInterrupt):
                click.echo(f"pyfastv: {slots.name} at {server.address_of(listening)} (Ctrl-C ends)")
                server.run(application, slots, listening, verbose=options["verbose"])
        finally:
            slots.close(0.0)


class _Ended(BaseException):
    """SIGTERM, before the server listens to it."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Whoever asks for the end while a model is loaded has it, and that is no failure."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended

    before = None
    with suppress(ValueError):  # not the main thread
        before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Ended:
        pass
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _check_room() -> None:
    """Under a limit on memory that the model uses up, not even an error could be answered."""
    try:
        bytearray(_ROOM)
    except MemoryError:
        raise OutOfMemoryError(
            f"the model leaves less than {_ROOM >> 20} MiB of the memory that this process may have, too little to "
            "serve: allow more, or use a smaller -c, fewer --slots"
        ) from None


def _settings(module: Any, address: str, options: dict[str, Any]) -> Any:
    loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    key = options["api_key"]
    if key is not None and (not key.strip() or not key.isprintable()):
        raise click.UsageError("--api-key must be printable and not empty.")
    if not loopback and key is None:
        tell(
            f"pyfastv: everyone who reaches {address} can use this server: set --api-key, or --host 127.0.0.1"
        )
    return module.Settings(
        api_key=key,
        cors_origins=options["cors_origin"],
        hosts=tuple(name.lower() for name in options["allow_host"])
        if loopback or options["allow_host"]
        else None,
        allow_remote_images=options["allow_remote_images"],
        allow_local_files=options["allow_local_files"],
        max_body_bytes=options["max_body_mb"] * 2**20,
        max_images=options["max_images"],
        max_frames=options["max_frames"],
        max_pixels=options["max_pixels"],
        max_tokens=options["max_tokens"],
        ping_seconds=options["sse_ping_interval"] or None,
        access_log=tell if options["access_log"] else None,
        sampling=module.SamplingDefaults(temperature=options["temp"]),
    )

"""Pictures and videos from the web, for servers that were told to fetch them.

A client chooses the address, so it must not lead into the server's own network. Names are resolved here, every
address is checked, and the connection goes to the address that was checked: a second lookup that answers otherwise
(DNS rebinding) has nobody to ask. Redirects are followed by hand, with the same checks. Proxies of the environment
are not used: they would look names up again.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator
from functools import cache
from urllib.parse import urljoin, urlsplit

import anyio
import httpcore2 as httpcore

from ..errors import ImageError
from .settings import Settings

__all__ = ["fetch", "refuse_address"]

_REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {"User-Agent": "pyfastv", "Accept": "image/*,video/*", "Accept-Encoding": "identity"}


def refuse_address(address: str) -> str | None:
    """Why nothing is fetched from an IP address; None: it is a public one.

    IPv4 addresses inside of IPv6 ones (mapped, NAT64, 6to4, Teredo) are judged as what they lead to."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return refuse_address(str(inner))
        if ip.is_site_local:
            return "is private"
    for kind in ("unspecified", "loopback", "link_local", "multicast", "private", "reserved"):
        if getattr(ip, f"is_{kind}"):
            return f"is {kind.replace('_', '-')}"
    return None if ip.is_global else "is not public"


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only."""

    def __init__(self) -> None:
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise ImageError(f"the host {host!r:.100} cannot be found") from None
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            if reason := refuse_address(address):
                raise ImageError(f"the host {host!r:.100} is at {address}, which {reason}: not fetched")
        failure: Exception = ImageError(f"the host {host!r:.100} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


async def fetch(url: str, settings: Settings) -> bytes:
    """The bytes behind an http(s) URL. Raises ImageError."""
    shown = url if len(url) <= 100 else f"{url[:100]}..."
    try:
        with anyio.fail_after(settings.remote_seconds):
            return await _follow(url, settings)
    except TimeoutError:
        raise ImageError(f"{shown}: took longer than {settings.remote_seconds:.0f} s") from None
    except ImageError as error:
        raise ImageError(f"{shown}: {error}") from None
    # everything that a hostile host can make of a connection; httpcore lets some of anyio's and ssl's through
    except Exception as error:
        raise ImageError(f"{shown}: cannot be fetched: {type(error).__name__}: {error}") from None


async def _follow(url: str, settings: Settings) -> bytes:
    async with httpcore.AsyncConnectionPool(
        ssl_context=_tls(), network_backend=_CheckedNetwork()
    ) as connections:
        for _ in range(settings.remote_redirects + 1):
            _check_url(url)
            async with connections.stream("GET", _ascii(url), headers=_HEADERS) as response:
                if response.status in _REDIRECTS:
                    url = urljoin(url, _header(response, b"location"))
                    continue
                if response.status != 200:
                    raise ImageError(f"the host answered {response.status}")
                return await _read(response, settings.remote_bytes)
    raise ImageError(f"more than {settings.remote_redirects} redirects")


async def _read(response: httpcore.Response, limit: int) -> bytes:
    too_large = ImageError(f"larger than {limit:,} bytes")
    length = _header(response, b"content-length")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    data = bytearray()
    async for chunk in response.aiter_stream():
        data += chunk
        if len(data) > limit:
            raise too_large
    return bytes(data)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ImageError(f"not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ImageError(f"leads to {parts.scheme or 'no scheme'!r:.50}, not to http or https")
    if not host:
        raise ImageError("names no host")
    if parts.username is not None or parts.password is not None:
        raise ImageError("has a user name or a password in it")


def _ascii(url: str) -> str:
    """The URL with an internationalised host in its ASCII form, and other characters escaped."""
    parts = urlsplit(url)
    host = str(parts.hostname)
    if ":" in host:
        host = f"[{host}]"
    elif not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise ImageError(f"the host {host!r:.100} is not a name") from None
    port = f":{parts.port}" if parts.port is not None else ""
    tail = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    tail = "".join(_escaped(tail))
    return f"{parts.scheme}://{host}{port}{tail if tail.startswith('/') else '/' + tail}"


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        if "!" <= character <= "~":
            yield character
        else:
            yield from (f"%{byte:02X}" for byte in character.encode("utf-8", "replace"))


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()

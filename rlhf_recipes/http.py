"""What all clients here do alike: which proxy a request goes through, and how much of an answer is read.

The environment's proxies (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`) are read in one place, so that both
HTTP libraries in use go the same way and a message can name it. A loopback address never goes through a proxy: another
machine would ask itself.
"""

import ipaddress
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

MEGABYTE = 2**20
LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address, is this machine itself: `localhost`, `127.0.0.1`, `127.1`, `::1`."""
    host = host.rstrip(".").lower()
    if host in LOOPBACK_NAMES or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return socket.inet_aton(host)[0] == 127  # short forms of IPv4
        except OSError:
            return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    # Connected to, the unspecified address (0.0.0.0) is this machine too.
    return bool(mapped.is_loopback or mapped.is_unspecified)


def proxy_of(url: str) -> str | None:
    """The proxy that the environment asks to go through to an address; `None` for the direct way."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host if parts.port is None else f"{host}:{parts.port}"):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def through(proxy: str | None) -> str:
    """How a message names the proxy that a request went through, without the user and password that it may hold."""
    if proxy is None:
        return ""
    scheme, _, rest = proxy.partition("://")
    return f" through the proxy {scheme}://{rest.rpartition('@')[2]} that the environment names"


async def read_at_most(response: Any, megabytes: float) -> bytes | None:
    """The body of a streamed answer of httpx2; `None`, and the rest is left unread, where it is larger."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > megabytes * MEGABYTE:
            return None
    return bytes(body)

"""The one HTTP client here: which proxy a request goes through, when it is tried again, how much of an answer is read.

The environment's proxies (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`) are read in one place, so that a
message can name the one in between. A loopback address never goes through a proxy: another machine would ask itself.
"""

import asyncio
import contextlib
import functools
import ipaddress
import json
import logging
import random
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)
MEGABYTE = 2**20
LONGEST_PAUSE = 60.0  # seconds between two attempts; a server that asks for more has failed
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


@dataclass(eq=False)
class Failure(Exception):
    """A request that failed: what the server did, what the user can do, and whether another attempt may help."""

    problem: str
    advice: str
    again: bool = False
    pause: float = 0.0  # seconds that the server asks to wait
    code: int | None = None  # of a refusal that is final
    attempts: int = 1


@dataclass(frozen=True)
class Client:
    """Sends requests to an address side by side, and each again where that may help.

    It may where the connection failed, no answer came in time, or the server said 429 or 5xx. Pauses double and are
    shortened at random; a `Retry-After` of up to 60 seconds is waited for.

    Args:
        timeout (`float`): Seconds of one attempt, from connecting to the last byte of the answer.
        retries (`int`): Attempts after the first.
        most_bytes (`float`): The largest answer that is read.
        backoff (`float`, *optional*, defaults to 1.0): Seconds before the second attempt, at most.
        max_concurrent (`int`, *optional*, defaults to 8): Requests under way at once.
        token (`str`, *optional*): A bearer token. It stands in no failure and in no log.
        name (`str`, *optional*, defaults to `"The server"`): Who is asked for, in the log.
        method (`str`, *optional*, defaults to `"POST"`): Of the requests; a `GET` sends nothing.
        text (`bool`, *optional*, defaults to `False`): An answer is any text, and is given as it is.
    """

    url: str
    timeout: float
    retries: int
    most_bytes: float
    backoff: float = 1.0
    max_concurrent: int = 8
    token: str = ""
    name: str = "The server"
    method: str = "POST"
    text: bool = False

    @property
    def way(self) -> str:
        """The address, without what may be a key in it, and the proxy in between."""
        return self.url.partition("?")[0].partition("#")[0] + through(proxy_of(self.url))

    async def post_all(
        self, requests: Sequence[Mapping[str, Any]], read: Callable[[int, Any], Any] = lambda number, answer: answer
    ) -> list[Any]:
        """The answers to requests, parsed as JSON unless they are text, in their order.

        Args:
            requests (`Sequence[Mapping]`): For each, what httpx2's `stream` takes besides method and address.
            read (`Callable`, *optional*):
                Makes of the number of a request and its answer what is wanted, or raises [`Failure`].

        Raises:
            [`Failure`]: the first one that is final, which ends the others.
        """
        import httpx2

        free = asyncio.Semaphore(self.max_concurrent)
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        # The client limits nothing itself: the time of a request begins when it is its turn.
        everything, proxy = httpx2.Limits(), proxy_of(self.url)
        async with httpx2.AsyncClient(
            verify=_tls(), timeout=None, limits=everything, headers=headers, proxy=proxy, trust_env=False
        ) as http:

            async def answer(number: int, request: Mapping[str, Any]) -> Any:
                async with free:
                    try:
                        return read(number, await self._post(http, request))
                    except Failure as failure:
                        failure.problem = self._without_token(failure.problem)
                        raise

            try:
                async with asyncio.TaskGroup() as group:  # the first that fails ends the others
                    tasks = [group.create_task(answer(*numbered)) for numbered in enumerate(requests)]
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _post(self, http: Any, request: Mapping[str, Any]) -> Any:
        attempt = 1
        while True:
            try:
                return await self._attempt(http, request)
            except Failure as failure:
                failure.attempts = attempt
                if not failure.again or attempt > self.retries:
                    raise
                pause = min(self.backoff * 2.0 ** (attempt - 1), LONGEST_PAUSE) * _dice.uniform(0.5, 1.0)
                pause = max(pause, failure.pause)
                attempt += 1
                logger.warning(
                    "%s: %s, %s. Attempt %d of %d follows in %.1f s.",
                    *(self.name, self.way, self._without_token(failure.problem), attempt, self.retries + 1, pause),
                )
            await asyncio.sleep(pause)

    async def _attempt(self, http: Any, request: Mapping[str, Any]) -> Any:
        import httpx2

        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout), http.stream(self.method, self.url, **request) as response:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > self.most_bytes:
                        break
        except TimeoutError:
            raise Failure(
                f"it did not answer within {self.timeout:g} s",
                "Give it a longer timeout, or less at once (max_concurrent, batch_size).",
                again=True,
            ) from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise Failure(
                f"it cannot be reached ({str(error) or type(error).__name__})",
                "Check that the server runs and that the url is right.",
                again=isinstance(error, httpx2.TransportError),
            ) from None
        if len(body) > self.most_bytes:
            raise Failure(
                f"its answer is larger than {self.most_bytes / MEGABYTE:g} MB",
                "Check that the url is that of a server with this protocol, or raise max_answer_mb.",
            )
        if not response.is_success:
            raise self._refusal(response, bytes(body))
        if self.text:
            return body.decode(errors="replace")
        try:
            return json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            said = excerpt(self._without_token(body.decode(errors="replace")))
            raise rubbish(f"something that is no JSON ({error}): {said}") from None

    def _refusal(self, response: Any, body: bytes) -> Failure:
        """What an answer other than 2xx means."""
        code = response.status_code
        said = excerpt(self._without_token(_detail(body)))
        problem = f"it answered {code} {response.reason_phrase}".rstrip() + (f": {said}" if said else "")
        if code != 429 and code < 500:
            return Failure(problem, "Look into its log.", code=code)
        pause = _retry_after(response.headers.get("Retry-After", ""))
        if pause > LONGEST_PAUSE:
            return Failure(f"{problem}, and asks to wait {pause:.0f} s", "Try again then, or use another server.")
        return Failure(problem, "Look into the server's log.", again=True, pause=pause)

    def _without_token(self, text: str) -> str:
        """A text of the server's, for the case that it says what it was sent."""
        return text.replace(self.token, "***") if self.token else text


def rubbish(what: str) -> Failure:
    """The failure of a server that answered something else than it should."""
    return Failure(f"it answered {what}", "Check that the url is that of a server with this protocol.")


def excerpt(text: str, limit: int = 300) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."


# The jitter draws from here: the global generator belongs to the run, which must be able to go on exactly.
_dice = random.Random()


@functools.cache
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes as long as many requests.
    import httpx2

    return httpx2.create_ssl_context()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks to wait, as a number or as a date; 0 where it says neither."""
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _detail(body: bytes) -> str:
    """What a server says of its refusal: FastAPI's `detail`, OpenAI's `error.message`, or the body as it is."""
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(body)
        error = answer.get("error") if isinstance(answer, dict) else None
        message = error.get("message", answer) if isinstance(error, dict) else answer
        detail = answer.get("detail", message) if isinstance(answer, dict) else answer
        return detail if isinstance(detail, str) else json.dumps(detail)
    return body.decode(errors="replace")

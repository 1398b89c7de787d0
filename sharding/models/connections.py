"""How a server is reached from here: its URL, the proxy in between, certificates and the key, each checked by name.

Everything that can be wrong with it before the first request is one error of ours: `check_urls` when the config is
read, `new_client` in the preflight of a run and again in each process that asks. `sharding.models.server` sends the
requests.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import re
import ssl
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from sharding.errors import MillError, RequestError

if TYPE_CHECKING:
    import httpx

_CONNECT_S = 10.0
_KEEP_IDLE_S = 3.0  # below the 5 s after which uvicorn closes an idle connection, maybe just as it is used again

_HOST = re.compile(r"[A-Za-z0-9_.-]+")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


# --- URLs -------------------------------------------------------------------------------------------------------------


def check_urls(urls: Sequence[str]) -> None:
    """Refuses what is no base URL of a server, for the validators of config sections.

    Raises:
        ValueError: names the URL and what is wrong with it, but no password.
    """
    for url in urls:
        if problem := _problem_of(url):
            raise ValueError(f"urls: {problem}")
    if len(set(map(base_url, urls))) < len(urls):
        raise ValueError("urls: one of them is there twice")


def check_url(url: str) -> None:
    """The same of one URL, which stands under `url`.

    Raises:
        ValueError: as `check_urls`.
    """
    if problem := _problem_of(url):
        raise ValueError(f"url: {problem}")


def base_url(url: str) -> str:
    """A URL without the "/v1" that paths begin with."""
    return url.rstrip("/").removesuffix("/v1")


def _problem_of(url: str) -> str | None:
    """What is wrong with a base URL, without the secrets in it; None: nothing."""
    shown = repr(url) if "@" not in url and "?" not in url and "#" not in url else "one of them"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return f"{shown} is no URL of a server: {error}"
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        return (
            f"the one at {parts.hostname} holds a password, query or fragment; leave it out, put the key into an "
            "environment variable and name that in api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"{shown} is no URL of a server, such as http://localhost:8000"
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        return f"{shown} holds a space or a control character; write it without, such as http://localhost:8000"
    if problem := _problem_of_place(parts):
        return f"{shown} is no URL of a server: {problem}"
    if parts.path.startswith("//"):
        return f"{shown} is no URL of a server: its address begins twice"
    return None


def _problem_of_place(parts: SplitResult) -> str | None:
    """What is wrong with the host or the port of a URL."""
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return f"its port {parts.netloc.rpartition(':')[2]!r} is none; ports go from 1 to 65535"
    host = parts.hostname or ""
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return None
    try:
        spelled = host.encode("idna").decode()
    except UnicodeError:
        spelled = ""
    return None if _HOST.fullmatch(spelled) else f"{host!r} can't be the name of a host"


# --- the key ----------------------------------------------------------------------------------------------------------


def read_key(api_key_env: str | None, named_by: str = "api_key_env") -> SecretStr | None:
    """The key in an environment variable, masked wherever it is shown.

    Args:
        api_key_env: the variable; None: there is no key.
        named_by: what names it in the config, for messages.

    Raises:
        RequestError: the variable is not set, or what it holds can't be a key.
    """
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise RequestError(f"{named_by}: the environment variable {api_key_env} is not set in the process that asks")
    if not (key.isascii() and key.isprintable()):
        raise RequestError(f"{named_by}: {api_key_env} holds characters that no key can have")
    return SecretStr(key)


# --- proxies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proxy:
    """What stands between us and a server.

    Attributes:
        url: with its password, if it has one.
        setting: where it is set, such as "HTTPS_PROXY".
    """

    url: str = field(repr=False)
    setting: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} of {self.setting}"


def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment names for a URL; None where it is reached directly, as NO_PROXY may say.

    Raises:
        RequestError: it is none that can be used.
    """
    parts = urlsplit(url)
    settings = urllib.request.getproxies()  # the environment's, or else those of the system
    for scheme in (parts.scheme, "all"):
        if settings.get(scheme):
            break
    else:
        return None
    if _is_reached_directly(parts, settings.get("no", "")):
        return None
    names = (f"{scheme.upper()}_PROXY", f"{scheme}_proxy")
    address = settings[scheme] if "://" in settings[scheme] else f"http://{settings[scheme]}"
    proxy = Proxy(address, next((name for name in names if os.environ.get(name)), "the system's settings"))
    _check_proxy(proxy, parts.hostname or "")
    return proxy


def _check_proxy(proxy: Proxy, host: str) -> None:
    way_out = f"correct {proxy.setting}, or name {host} in NO_PROXY if it is reached without"
    try:
        parts = urlsplit(proxy.url)
        problem = _problem_of_place(parts) if parts.hostname else "it names no host"
    except ValueError as error:
        raise RequestError(f"{proxy.setting} is no URL of a proxy: {error}; {way_out}") from error
    if parts.scheme not in _PROXY_SCHEMES:
        problem = f"a proxy is one of {', '.join(f'{scheme}://' for scheme in _PROXY_SCHEMES)}"
    if problem:
        raise RequestError(f"the proxy {proxy} can't be used: {problem}; {way_out}")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise RequestError(
            f"the proxy {proxy} needs the package socksio: pip install 'httpx[socks]', or name {host} in NO_PROXY if "
            "it is reached without"
        )


def _is_reached_directly(parts: SplitResult, no_proxy: str) -> bool:
    """Whether NO_PROXY leaves a host out: `*`, a host, a domain with all below it, an address or a range of them."""
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for entry in no_proxy.lower().replace(",", " ").split():
        if entry == "*":
            return True
        with suppress(ValueError):
            if address is not None and address in ipaddress.ip_network(entry.strip("[]"), strict=False):
                return True
        name, colon, of_port = entry.rpartition(":")
        if colon and of_port.isdecimal() and (":" not in name or name.endswith("]")):
            if int(of_port) != port:
                continue
            entry = name.strip("[]")
        domain = entry.removeprefix("*").lstrip(".")
        if domain and (host == domain or host.endswith(f".{domain}")):
            return True
    return False


# --- the client -------------------------------------------------------------------------------------------------------


def new_client(url: str, key: SecretStr | None, *, scheme: str = "Bearer") -> tuple[httpx.AsyncClient, Proxy | None]:
    """A client that keeps its connections to a server, and the proxy that it goes through.

    Args:
        key: sent with every request.
        scheme: by which it is sent.

    Raises:
        RequestError: a proxy or a certificate file that the environment names can't be used.
        MillError: httpx is absent.
    """
    try:
        import httpx
    except ImportError as error:
        raise MillError("endpoints need httpx; install it with: pip install 'thoughtmill[endpoint]'") from error
    for name in ("httpx", "httpcore"):  # a line per request would bury the log
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"{scheme} {key.get_secret_value()}"
    proxy = proxy_for(url)
    secure_proxy = proxy is not None and proxy.url.startswith("https:")
    certificates = _certificates() if secure_proxy or url.startswith("https:") else None  # they take long to load
    client = httpx.AsyncClient(
        headers=headers,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # they would pile up, and bind to one replica
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_IDLE_S),
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        verify=certificates or False,
        proxy=None if proxy is None else httpx.Proxy(proxy.url, ssl_context=certificates if secure_proxy else None),
        trust_env=False,  # it would make every proxy of the environment, also those that NO_PROXY leaves out
    )
    return client, proxy


def _certificates() -> ssl.SSLContext:
    """The authorities that servers are checked by: those of SSL_CERT_FILE or SSL_CERT_DIR, or certifi's.

    Raises:
        RequestError: a variable names what isn't there, or no certificates.
    """
    import httpx

    setting = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    if setting is None:
        return httpx.create_ssl_context(trust_env=False)
    path = Path(os.environ[setting])
    if not (path.is_file() if setting == "SSL_CERT_FILE" else path.is_dir()):
        kind = "file" if setting == "SSL_CERT_FILE" else "folder"
        raise RequestError(f"{setting}: there is no {kind} {str(path)!r}; correct it, or unset it")
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl's own are among them
        raise RequestError(f"{setting}: {str(path)!r} holds no certificates that can be read ({error})") from error

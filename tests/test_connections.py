"""How servers are reached: what is wrong with URL, proxy, certificates or key is told by name, before a request."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from sharding.errors import RequestError
from sharding.models import connections
from sharding.models.connections import check_urls, new_client, proxy_for


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host:99999", "its port '99999' is none"),
        ("http://host:0", "its port '0' is none"),
        ("http://host:8o00", "its port '8o00' is none"),
        ("http://host:-1", "its port '-1' is none"),
        ("http://my host:8000", "a space or a control character"),
        ("http://host:8000 ", "a space or a control character"),
        ("http://ho\tst:8000", "a space or a control character"),
        ("http://ho\u200bst", "a space or a control character"),
        ("http://gpu..internal", "can't be the name of a host"),
        ("http://gpu,internal:80", "'gpu,internal' can't be the name of a host"),
        ("http://$HOST:8000", r"'\$host' can't be the name of a host"),
        ("http://" + "a" * 64, "can't be the name of a host"),
        ("http://[::1:8000", "Invalid IPv6 URL"),
        ("http://http://host:8000", "its address begins twice"),
        ("http://me:hunter2@host:99999", "at host holds a password"),
        ("http://me:hunter2@[host", "one of them is no URL"),
        ("socks5://host:1", "is no URL of a server, such as"),
    ],
)
def test_urls_that_no_request_could_be_sent_to(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check_urls([url])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000", "http://10.0.0.7", "http://[::1]:8000/v1", "https://bücher.example/x/v1", "http://a_b:1"],
)
def test_urls_that_are_right(url: str) -> None:
    check_urls([url])
    assert httpx.URL(url).host


UNUSABLE: dict[str, tuple[dict[str, str], str]] = {
    "a socks proxy without its package": (
        {"ALL_PROXY": "socks5://h:1080"},
        "//h:1080 of ALL_PROXY needs .*socksio",
    ),
    "another, with a password": (
        {"http_proxy": "socks5h://me:hunter2@h:1"},
        "//h:1 of http_proxy needs .*socks",
    ),
    "a port": ({"HTTP_PROXY": "http://proxy:99999"}, "of HTTP_PROXY can't be used: its port '99999'"),
    "a scheme": (
        {"HTTP_PROXY": "ftp://me:hunter2@proxy"},
        "proxy ftp://proxy of HTTP_PROXY can't be used: a proxy is one",
    ),
    "a space": ({"HTTP_PROXY": "my proxy:3128"}, "HTTP_PROXY can't be used: 'my proxy' can't be the name of a host"),
    "no host": ({"HTTP_PROXY": "http://:3128"}, "it names no host"),
    "brackets": ({"ALL_PROXY": "http://[proxy:3128"}, "ALL_PROXY is no URL of a proxy"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_proxy_that_can_not_be_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    environment, words = UNUSABLE[name]
    set_all(monkeypatch, environment)
    with pytest.raises(RequestError, match=f"(?s){words}.*gpu7.*NO_PROXY") as caught:
        new_client("http://gpu7:8000", None)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "localhost, gpu7")  # and where it isn't needed it is nobody's business
    assert new_client("http://gpu7:8000", None)[1] is None


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({"HTTP_PROXY": "proxy:3128"}, "http://gpu7", "http://proxy:3128 of HTTP_PROXY"),
        ({"HTTP_PROXY": "proxy:3128"}, "https://gpu7", None),
        ({"https_proxy": "http://me:pw@proxy:1/"}, "https://gpu7", "http://proxy:1 of https_proxy"),
        ({"ALL_PROXY": "https://proxy"}, "http://gpu7", "https://proxy of ALL_PROXY"),
        ({"ALL_PROXY": "http://a", "HTTP_PROXY": "http://b"}, "http://gpu7", "http://b of HTTP_PROXY"),
        ({"ALL_PROXY": "", "HTTP_PROXY": ""}, "http://gpu7", None),
    ],
)
def test_which_proxy(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, proxy: str | None) -> None:
    set_all(monkeypatch, environment)
    found = proxy_for(url)
    assert (found and str(found)) == proxy and "pw" not in repr(found)
    client, through = new_client(url, None)
    assert through == found and not client._mounts.get(httpx._utils.URLPattern("all://x"))


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", "http://gpu7:8000", True),
        ("other,gpu7", "http://gpu7:8000", True),
        ("GPU7", "http://gpu7:8000", True),
        ("internal", "http://gpu7.internal", True),
        (".internal", "http://gpu7.internal.", True),
        ("*.internal", "http://gpu7.internal", True),
        ("ternal", "http://gpu7.internal", False),
        ("gpu7.internal", "http://gpu8.internal", False),
        ("gpu7:8000", "http://gpu7:8000", True),
        ("gpu7:8001", "http://gpu7:8000", False),
        ("gpu7:443", "https://gpu7", True),
        ("10.0.0.0/8", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://11.1.2.3:8000", False),
        ("127.0.0.1", "http://127.0.0.1:8000", True),
        ("::1", "http://[::1]:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("fd00::/8", "http://[fd12::7]", True),
        ("10.0.0.0/8", "http://gpu7", False),
        ("", "http://gpu7", False),
        (" , ,", "http://gpu7", False),
    ],
)
def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, direct: bool) -> None:
    """Hosts, domains, ports, addresses and ranges of them: httpx alone takes a range for a host's name."""
    set_all(monkeypatch, {"ALL_PROXY": "http://proxy:3128", "no_proxy": no_proxy})
    assert (proxy_for(url) is None) == direct


@pytest.mark.parametrize(
    ("setting", "content", "words"),
    [
        ("SSL_CERT_FILE", None, "SSL_CERT_FILE: there is no file '.*absent'; correct it, or unset it"),
        ("SSL_CERT_DIR", None, "SSL_CERT_DIR: there is no folder '.*absent'"),
        ("SSL_CERT_FILE", "no certificate", "SSL_CERT_FILE: '.*absent' holds no certificates that can be read"),
        ("SSL_CERT_DIR", "a file", "SSL_CERT_DIR: there is no folder"),
    ],
)
def test_certificates_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, content: str | None, words: str
) -> None:
    path = tmp_path / "absent"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(setting, str(path))
    with pytest.raises(RequestError, match=words):
        new_client("https://gpu7", None)
    new_client("http://gpu7", None)  # needs none
    monkeypatch.setenv("HTTP_PROXY", "https://proxy")  # and this one does
    with pytest.raises(RequestError, match=words):
        new_client("http://gpu7", None)


def test_certificates_that_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import certifi

    used: list[Any] = []
    monkeypatch.setattr(ssl, "create_default_context", lambda **where: used.append(where) or ssl.SSLContext(16))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    new_client("https://gpu7", None)
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    new_client("https://gpu7", None)
    assert used == [{"capath": str(tmp_path)}, {"cafile": certifi.where()}]


def test_a_proxy_of_the_system_is_named_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"http": "http://proxy:8080"}
    monkeypatch.setattr(connections.urllib.request, "getproxies", lambda: settings)
    assert str(proxy_for("http://gpu7")) == "http://proxy:8080 of the system's settings"

"""Media at addresses that a request names: what may be asked, what is dialled, how much is read."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from perceptune.errors import UserError
from perceptune.serving.errors import ApiError
from perceptune.serving.remote import Remote
from perceptune.utils.addresses import is_public
from perceptune.utils.remote import RemoteError, parse
from web import PUBLIC, QuietHandler

PICTURE = b"a picture" * 100
INSIDE = (
    "127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "2002:7f00:1::", "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1", "2001:0:1::1", "2001:db8::1", "localhost", "",
)  # fmt: skip


class Handler(QuietHandler):
    """Does what its path says."""

    def do_GET(self) -> None:  # noqa: N802
        self.server.hosts.append(self.headers["Host"])  # type: ignore[attr-defined]
        getattr(self, "send_" + self.path.strip("/").partition("?")[0].partition("-")[0])()

    def send_picture(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE)

    def send_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(PICTURE)

    def send_short(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(PICTURE)

    def send_drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(100):
            self.wfile.write(b"a")
            time.sleep(0.05)

    def send_to(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.partition("?")[2])
        self.end_headers()

    def send_missing(self) -> None:
        self.send_error(404)


class Web:
    """A server on this machine that passes for one on the internet, and notes who was asked for."""

    def __init__(self) -> None:
        self.resolved: list[str] = []
        self.dialled: list[str] = []
        self.answers: dict[str, list[str]] = {}  # what a name leads to, time after time
        self.server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.hosts: list[str] = []
        self.server.hosts = self.hosts
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def resolve(self, host: str, _: int) -> Sequence[str]:
        self.resolved.append(host)
        answers = self.answers.get(host, [PUBLIC])
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    def dial(self, address: str, _: int, seconds: float) -> socket.socket:
        self.dialled.append(address)
        return socket.create_connection(self.server.server_address[:2], timeout=seconds)


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.server.shutdown()
    made.server.server_close()


def remote(web: Web, *domains: str) -> Remote:
    return Remote(frozenset(domains or {"pictures.example"}), web.resolve, web.dial)


def refused(web: Web, url: str, match: str, *, most: int = 10_000, seconds: float = 5) -> None:
    with pytest.raises(ApiError, match=match) as caught:
        remote(web).fetch(url, most, seconds)
    assert not any(address in caught.value.message for address in [PUBLIC, *INSIDE] if address)


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


def test_an_allowed_picture_is_fetched_from_the_address_that_was_checked(web: Web) -> None:
    assert remote(web).fetch("http://pictures.example/picture", 10_000, 5) == PICTURE
    assert (web.resolved, web.dialled, web.hosts) == (["pictures.example"], [PUBLIC], ["pictures.example"])


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/picture", "http://pictures.example.evil.example/picture", "http://pictures.example:81/x",
        "http://sub.pictures.example/picture", "http://127.0.0.1/picture", "http://2130706433/", "http://0x7f.1/",
    ],
)  # fmt: skip
def test_only_listed_domains_are_looked_up(web: Web, url: str) -> None:
    refused(web, url, "not allowed")
    assert web.resolved == []


@pytest.mark.parametrize(
    "url",
    [
        "http://evil@pictures.example/", "http://pictures.example\\@evil.example/", "http://[::1]/", "http:///picture",
        "http://pictures.example:99999/", "ftp://pictures.example/", "http://pictures.example/a b", "gopher://x/",
        "http://pictures.example/\r\nHost: evil", "http://pictürés.example/", "http://pictures.example\x00.evil/",
        "http://a/" + "x" * 9000,
    ],
)  # fmt: skip
def test_addresses_that_can_be_read_in_two_ways(url: str) -> None:
    with pytest.raises(RemoteError):
        parse(url)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1"])
def test_a_listed_name_that_leads_inside_is_not_dialled(web: Web, address: str) -> None:
    web.answers["pictures.example"] = [address]
    refused(web, "http://pictures.example/picture", "not allowed")
    assert web.dialled == []


def test_one_inner_address_among_others_is_enough(web: Web) -> None:
    given = Remote(frozenset({"pictures.example"}), lambda *_: [PUBLIC, "10.0.0.1"], web.dial)
    with pytest.raises(ApiError, match="not allowed"):
        given.fetch("http://pictures.example/picture", 10_000, 5)
    assert web.dialled == []


def test_a_name_that_leads_elsewhere_the_second_time(web: Web) -> None:
    """DNS rebinding: between check and connection nothing is looked up again."""
    web.answers["pictures.example"] = [PUBLIC, "127.0.0.1"]
    assert remote(web).fetch("http://pictures.example/picture", 10_000, 5) == PICTURE
    assert web.dialled == [PUBLIC]
    refused(web, "http://pictures.example/picture", "not allowed")  # the next request looks it up, and sees


@pytest.mark.parametrize(
    "where",
    [
        "http://127.0.0.1/picture", "http://other.example/picture", "http://pictures.example:8080/picture",
        "file:///etc/passwd", "ftp://pictures.example/x", "//169.254.169.254/latest", "http://x@pictures.example/",
    ],
)  # fmt: skip
def test_every_hop_of_a_redirect_is_checked(web: Web, where: str) -> None:
    refused(web, f"http://pictures.example/to?{where}", "not allowed|plain host|redirect")
    assert web.dialled == [PUBLIC]


def test_a_redirect_to_another_listed_port_is_refused(web: Web) -> None:
    both = remote(web, "pictures.example", "pictures.example:8080")
    with pytest.raises(ApiError, match="another port"):
        both.fetch("http://pictures.example/to?http://pictures.example:8080/picture", 10_000, 5)


def test_a_redirect_is_resolved_anew_and_followed_a_few_times(web: Web) -> None:
    both = remote(web, "pictures.example", "more.example")
    url = "http://pictures.example/to?http://more.example/to-2?/picture"
    assert both.fetch(url, 10_000, 5) == PICTURE
    assert web.resolved == ["pictures.example", "more.example", "more.example"]
    web.answers["more.example"] = ["127.0.0.1"]
    with pytest.raises(ApiError, match="not allowed"):
        both.fetch(url, 10_000, 5)
    refused(web, "http://pictures.example/to?/to?/to?/to?/to?/to?/picture", "too many")


def test_sizes_and_times_have_ends(web: Web) -> None:
    for path in ("picture", "endless"):
        refused(web, f"http://pictures.example/{path}", "larger than", most=500)
    assert remote(web).fetch("http://pictures.example/picture", len(PICTURE), 5) == PICTURE
    refused(web, "http://pictures.example/short", "cannot be fetched|too early")
    refused(web, "http://pictures.example/missing", "status 404")
    started = time.monotonic()
    refused(web, "http://pictures.example/drip", "cannot be fetched|too long", seconds=0.3)
    assert time.monotonic() - started < 2


def test_domains_are_hosts() -> None:
    for wrong in ("https://pictures.example", "*.example", "Pictures.example", "pictures.example/x", "a:b"):
        with pytest.raises(UserError, match="allowed-media-domains"):
            Remote(frozenset({wrong}))

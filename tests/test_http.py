"""Which way a request goes: this machine is asked directly, others as the environment says."""

import pytest

from rlhf_recipes.http import is_loopback, proxy_of, through

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def environment(monkeypatch):
    for name in (*PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *(
            (host, True)
            for host in ("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "127.1", "::1")
        ),
        *((host, True) for host in ("::ffff:127.0.0.1", "0.0.0.0", "::", "ip6-localhost", "localhost.localdomain")),
        *((host, False) for host in ("example.org", "10.0.0.1", "128.0.0.1", "fe80::1", "localhost.example.org", "")),
    ],
)
def test_a_loopback_address(host, here):
    assert is_loopback(host) is here


def test_this_machine_is_asked_directly_whatever_the_environment_says(environment):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        environment.setenv(name, "http://proxy.example:3128")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "0.0.0.0:8000"):
        assert proxy_of(f"http://{host}/score") is None
        assert proxy_of(f"https://{host}/score") is None
    assert proxy_of("http://scores.example/score") == "http://proxy.example:3128"


def test_other_machines_as_the_environment_says(environment):
    assert proxy_of("http://scores.example/score") is None
    environment.setenv("HTTPS_PROXY", "secure.example:3128")
    environment.setenv("ALL_PROXY", "http://all.example:3128")
    environment.setenv("NO_PROXY", "internal.example,10.0.0.7")
    assert proxy_of("https://scores.example/score") == "http://secure.example:3128"
    assert proxy_of("http://scores.example/score") == "http://all.example:3128"
    assert proxy_of("http://a.internal.example:8000/score") is None
    assert proxy_of("http://10.0.0.7/score") is None


def test_a_message_names_the_proxy_without_its_password():
    assert through(None) == ""
    said = through("http://ann:s3cret@proxy.example:3128")
    assert said == " through the proxy http://proxy.example:3128 that the environment names"

"""Proxies that the environment names: they are for the hub, never for this machine itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

ADVICE = (
    "give HTTPS_PROXY as http://HOST:PORT, or unset it; for ALL_PROXY=socks5://… "
    "`pip install socksio`"
)


def find_proxy_fault() -> str | None:
    """Why no request can be made through the proxies of the environment; None if one can."""
    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        return f"the proxy in the environment cannot be used ({error})"
    return None


@contextmanager
def without_proxies() -> Iterator[None]:
    """The block's requests go where they are sent; what the environment names is put back."""
    names = [name for name in os.environ if name.lower().endswith("_proxy")]
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)

"""Proxies, certificates and tokens that the environment names: for the hub alone."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx

ADVICE = (
    "give HTTPS_PROXY as http://HOST:PORT, or unset it; for ALL_PROXY=socks5://… "
    "`pip install socksio`"
)


CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class Fault(NamedTuple):
    """Why no request can be made, and what to do about it."""

    words: str
    fix: str

    def __str__(self) -> str:
        return f"{self.words}; {self.fix}"


def find_request_fault() -> Fault | None:
    """Why no request can be made with what the environment names; None if one can."""
    try:
        httpx.Client().close()
    except (ssl.SSLError, OSError) as error:
        named = [f"{name}={os.environ[name]}" for name in CERTIFICATES if name in os.environ]
        words = f"certificates in the environment cannot be used ({error.strerror}): "
        fix = f"let {CERTIFICATES[0]} name a file of certificates, or unset it"
        return Fault(words + (", ".join(named) or "none is named, so those of certifi"), fix)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        return Fault(f"the proxy in the environment cannot be used ({error})", ADVICE)
    for name in TOKENS:
        if not os.environ.get(name, "").isascii():  # a header cannot hold it
            return Fault(f"{name} in the environment is no token", "set it again, or unset it")
    return None


@contextmanager
def without_proxies() -> Iterator[None]:
    """The block's requests go where they are sent; what the environment names is put back."""
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    names = proxies + [name for name in CERTIFICATES if name in os.environ]
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)

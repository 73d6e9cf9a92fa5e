"""Settings of the engine, in this process's child or on servers; `settings.py` has all others."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, field_validator, model_validator

from selfreward_lite.config.section import Count, Section


class EngineSettings(Section):
    kind: Literal["llama", "server"] = "llama"
    """what generates and judges. llama: llama.cpp in a child process, on this machine. server: the
    running servers in engine.servers; training stays here
    """
    servers: tuple[str, ...] = ()
    """for engine.kind=server: addresses of servers that hold this run's base, as
    ["http://gpu1:8001", "http://gpu2:8001"]; vLLM, or llama.cpp's llama-server with
    --models-preset. `doctor --servers RUN` prints how to start them
    """
    shared: str | None = None
    """folder of the runs (--runs-dir) as the servers see it, if they see it under another path"""
    patience: PositiveFloat = 10.0
    """minutes to wait when no server answers, before the run ends; the same command resumes it"""
    parallel: int = Field(32, ge=1, le=256)
    """sequences generated at once"""
    context: int = Field(16384, ge=256)
    """cells of the KV cache, for all sequences; where memory is too short for them, the engine
    starts again with fewer, and says so
    """
    batch: int = Field(512, ge=32)
    """tokens computed in one step at most"""
    # 16: idle roots cost attention time on a CPU; 32 made a tiny model a third slower than 8.
    roots: Count = 16
    """finished prompts kept in the cache, so that others share their start"""
    threads: int | None = Field(None, ge=1)
    """CPU threads; by default what is fastest, up to all cores"""
    gpu_layers: int = Field(0, ge=-1)
    """layers on the GPU; -1 = all"""
    unified: bool = True
    """one KV cache for all sequences. false: every sequence has context / (parallel + roots) cells
    of its own, which is faster on a CPU
    """
    flash: bool | None = None
    """flash attention; by default on a GPU, and on a CPU where the KV cache is unified. It computes
    only the cells that are used, so on a CPU it is faster where answers are short for their cells
    """

    @property
    def sequence_cells(self) -> int:
        """The most tokens of one sequence, prompt and reply."""
        return self.context if self.unified else self.context // (self.parallel + self.roots)

    @field_validator("servers")
    @classmethod
    def _are_addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        """The addresses without a slash at their end; each may be there once."""
        found = tuple(map(_check_address, servers))
        for address in found:
            if found.count(address) > 1:
                raise ValueError(f"{address} is there twice; name every server once")
        return found

    @field_validator("shared")
    @classmethod
    def _is_absolute(cls, shared: str | None) -> str | None:
        if shared is not None and not shared.startswith("/"):
            raise ValueError(f"{shared} is no path from the root; servers start in another folder")
        return shared

    @model_validator(mode="after")
    def _has_servers(self) -> Self:
        if self.kind == "server" and not self.servers:
            raise ValueError(
                "kind=server needs addresses: --set 'engine.servers=[\"http://127.0.0.1:8001\"]'"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.parallel + self.roots > 256:
            raise ValueError(
                f"parallel {self.parallel} and roots {self.roots} are more than llama.cpp's "
                "256 sequences"
            )
        if self.parallel > self.batch:
            raise ValueError(
                f"a batch of {self.batch} tokens is too small for one token of each of "
                f"{self.parallel} sequences"
            )
        return self


def _check_address(address: str) -> str:
    """The address without a slash at its end; raises ValueError for anything but http(s)."""
    try:
        parts = urlsplit(address)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        is_whole = False
    if not is_whole or not address.isascii() or not address.isprintable() or " " in address:
        raise ValueError(
            f"{_without_user(address)!r} is no address of a server; write it as http://HOST:PORT"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"{_without_user(address)}: leave name and password out, since settings are stored; a "
            "key belongs into the environment variable SELFREWARD_SERVER_KEY"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{address}: end it behind the port, as in {parts.scheme}://HOST:PORT")
    return address.rstrip("/")


def _without_user(address: str) -> str:
    """An address as it may be shown: what is before an @ may be a password."""
    return address.rpartition("@")[2]

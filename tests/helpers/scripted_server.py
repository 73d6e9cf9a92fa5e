"""A server that speaks as vLLM or as llama-server's router, and fails or lies on demand."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import word_model

from selfreward_lite.engine.presets import read_sections

Fault = Callable[[dict[str, Any]], str | None]
Change = Callable[[dict[str, Any], dict[str, Any]], None]
GENERATES = ("/v1/completions", "/completion")


class Close(Exception):
    """The connection ends here."""


class ScriptedServer:
    """Listens on loopback from `start` to `stop`; a port stays its own in between.

    `fault(body)` names what goes wrong with a request for tokens, None for nothing;
    `change(body, answer)` changes a good answer. `lies` change what is told about the server.
    `asked` are the bodies of such requests, `paths` counts all.
    """

    def __init__(self, kind: str, *, context: int = 200, slots: int = 4, **lies: Any) -> None:
        self.kind, self.context, self.slots, self.lies = kind, context, slots, lies
        self.fault: Fault = lambda body: None
        self.change: Change = lambda body, answer: None
        self.presets: Path | None = None  # llama-server's file
        self.adapters: dict[str, str] = {}  # vLLM's, by name
        self.loaded: dict[str, list[str]] = {}  # the router's sections, as last read
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self._models_under_way: list[str] = []
        self._lock = threading.Lock()
        self._listener: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._handle(self, None)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                server._handle(self, json.loads(self.rfile.read(length)))

            def log_message(self, *_: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._listener = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._listener.daemon_threads = True
        self._port = self._listener.server_port
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening and forget every adapter, as a process that ends."""
        listener, self._listener = self._listener, None
        if listener:
            listener.shutdown()
            listener.server_close()
        self.adapters.clear()

    def restart(self, after: float = 0.0) -> None:
        """Stop, and listen again after some seconds, in a thread."""

        def work() -> None:
            self.stop()
            time.sleep(after)
            self.start()

        threading.Thread(target=work, daemon=True).start()

    # -- answers ----------

    def _handle(self, handler: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        url = urlsplit(handler.path)
        with self._lock:
            self.paths[url.path] += 1
            self.headers.append(dict(handler.headers))
        handler.close_connection = True
        try:
            if self.lies.get("key") and handler.headers["Authorization"] != self.lies["key"]:
                self._send(handler, 401, {"error": {"message": "Unauthorized"}})
            elif url.path in GENERATES and body is not None:
                self._generate(handler, body)
            else:
                self._send(handler, *self._tell(url.path, parse_qs(url.query), body))
        except (Close, ConnectionError):
            pass

    def _send(self, handler: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        if status == 307:
            handler.send_header("Location", "http://127.0.0.1:1/")
        handler.end_headers()
        handler.wfile.write(data)

    def _generate(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.asked.append(body)
            self._models_under_way.append(body["model"])
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            what = self.fault(body)
            if what is None or what.startswith("lie"):
                status, answer = self._vllm(body) if self.kind == "vllm" else self._llama(body)
                if status == 200:
                    self.change(body, answer)
                self._send(handler, status, self._lie(what, answer))
            else:
                self._fail(handler, what)
        finally:
            with self._lock:
                self.under_way -= 1
                self._models_under_way.remove(body["model"])

    def _fail(self, handler: BaseHTTPRequestHandler, what: str) -> None:
        """Fail as named: a status, or a broken answer."""
        if what.isdigit():
            self._send(handler, int(what), {"error": {"message": f"status {what} as planned"}})
        elif what == "html":
            self._send(handler, 200, "<html>\n<b>It works!</b></html>")
        elif what == "packed":
            handler.send_response(200)
            handler.send_header("Content-Encoding", "gzip")
            handler.end_headers()
            handler.wfile.write(gzip.compress(json.dumps("x" * 10_000_000).encode()))
        elif what == "drop":
            raise Close
        elif what == "silence":
            time.sleep(1)
            raise Close
        elif what == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "5000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
        elif what == "long":
            self._send(handler, 200, json.dumps("x" * 300_000))
        elif what == "drip":
            handler.send_response(200)
            handler.end_headers()
            for _ in range(100):
                handler.wfile.write(b" ")
                time.sleep(0.05)
        else:
            raise AssertionError(what)

    def _tell(
        self, path: str, query: dict[str, list[str]], body: dict[str, Any] | None
    ) -> tuple[int, Any]:
        if "status" in self.lies:
            return self.lies["status"], self.lies.get("says", "Nothing here")
        if path == "/v1/models":
            return 200, {"data": self._list()}
        version = self.lies.get("version")
        if version and path == ("/version" if self.kind == "vllm" else "/props") and not query:
            return 200, {"version" if self.kind == "vllm" else "build_info": version}
        if self.kind == "vllm":
            return self._load(path, body)
        return self._route(path, query)

    def _list(self) -> list[dict[str, Any]]:
        owner = self.lies.get("owner")
        if self.kind == "vllm":
            base = {"id": "served", "owned_by": owner or "vllm", "max_model_len": self.context}
            return [base, *({"id": one, "parent": "served"} for one in self.adapters)]
        status = {} if self.lies.get("single") else {"status": {"value": "unloaded"}}
        names = ["default", *self.loaded]
        return [{"id": one, "owned_by": owner or "llamacpp", **status} for one in names]

    # -- vLLM ----------

    def _load(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if path != "/v1/load_lora_adapter" or body is None or self.lies.get("no_routes"):
            return 404, {"detail": "Not Found"}
        if self.lies.get("load"):
            return 500, {"error": {"message": self.lies["load"]}}
        name, folder = body["lora_name"], body["lora_path"]
        if not (name and folder):
            return 400, {"error": {"message": "Both 'lora_name' and 'lora_path' must be provided."}}
        if name in self.adapters:
            return 400, {
                "error": {"message": f"The lora adapter '{name}' has already been loaded."}
            }
        if not Path(folder).is_dir():
            says = f"Loading lora {name} failed: No adapter found for {folder}"
            return 404, {"error": {"message": says}}
        self.adapters[name] = Path(folder).parent.name
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _vllm(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["model"]
        if name != "served" and name not in self.adapters:
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        drawn = self._draw(body, body["max_tokens"], body.get("stop_token_ids", []))
        choice: dict[str, Any] = {"token_ids": drawn, "text": "", "finish_reason": "length"}
        if drawn and drawn[-1] in body.get("stop_token_ids", []):
            choice |= {"finish_reason": "stop", "stop_reason": drawn[-1]}
        if watched := body.get("logprob_token_ids"):
            text = tuple(body["prompt"])
            places = [
                {
                    f"token_id:{one}": self._logprobs((*text, *drawn[:i]), name)[one]
                    for one in watched
                }
                for i in range(len(drawn))
            ]
            choice["logprobs"] = {"top_logprobs": places}
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "prompt_tokens_details": {"cached_tokens": len(body["prompt"]) // 2},
        }
        return 200, {"choices": [choice], "usage": usage}

    # -- llama-server ----------

    def _route(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path == "/props" and not query:  # of the router itself, as an older one
            return 200, {"role": "router"}
        if path == "/models":
            if "reload" in query and self.presets and self.presets.exists():
                self.loaded = read_sections(self.presets.read_text())
            return 200, {"data": self._list()}
        name = query["model"][0]
        if name not in self.loaded:
            return 400, {"error": {"message": f"model '{name}' not found"}}
        files = [
            line.split(" = ")[1] for line in self.loaded[name] if line[:5] in ("model", "lora ")
        ]
        if self.lies.get("blind") or not all(Path(one).exists() for one in files):
            return 500, {"error": {"message": f"model name={name} failed to load"}}
        if path == "/props":
            settings = {"n_ctx": self.context}
            return 200, {"default_generation_settings": settings, "total_slots": self.slots}
        assert path == "/lora-adapters", path
        scale = self.lies.get("scale", 1.0)
        return 200, [{"id": 0, "path": one, "scale": scale} for one in files[1:]]

    def _llama(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, prompt = body["model"], body["prompt"]
        if name not in self.loaded:
            return 400, {"error": {"message": f"model '{name}' not found"}}
        ends = (word_model.END, word_model.OTHER_END)
        drawn = self._draw(body, body["n_predict"], ends)
        for token, bias in body.get("logit_bias", []):
            assert bias > 100
            drawn = [token]
        places = []
        # As the real one: nothing where the token is not a whole character, here an odd one.
        if "n_probs" in body and word_model.is_whole(drawn[0]):
            values = self._logprobs(tuple(prompt), name)
            order = sorted(range(len(values)), key=lambda one: -values[one])[: body["n_probs"]]
            places = [{"top_logprobs": [{"id": one, "logprob": values[one]} for one in order]}]
        return 200, {
            "tokens": drawn,
            "stop_type": "eos" if drawn[-1] in ends else "limit",
            "truncated": False,
            "tokens_evaluated": len(prompt),
            "timings": {"prompt_n": 1},
            "completion_probabilities": places,
        }

    # -- the model ----------

    def _adapter(self, name: str) -> str | None:
        """The adapter behind a model's name; none if the server ignores it."""
        if self.lies.get("ignores"):
            return None
        if self.lies.get("mixes") and name == "served":  # as vLLM on a CPU, in one batch
            time.sleep(0.002)
            name = next((one for one in list(self._models_under_way) if one != name), name)
        if self.kind == "vllm":
            return (
                self.lies.get("adapter")
                if name in self.adapters and "adapter" in self.lies
                else (self.adapters.get(name))
            )
        lora = [line for line in self.loaded[name] if line.startswith("lora")]
        return Path(lora[0]).parent.name if lora else None

    def _logprobs(self, tokens: tuple[int, ...], name: str) -> tuple[float, ...]:
        return word_model.logprobs(tokens, self._adapter(name), self.lies.get("base", "base"))

    def _draw(self, body: dict[str, Any], most: int, stop: Any) -> list[int]:
        return word_model.draw(
            body["prompt"],
            self._adapter(body["model"]),
            body.get("seed", 0),
            most,
            body["temperature"] == 0,
            stop,
            self.lies.get("base", "base"),
        )

    def _lie(self, what: str | None, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer with something wrong in it."""
        if what is None:
            return answer
        is_vllm = self.kind == "vllm"
        tokens = answer["choices"][0]["token_ids"] if is_vllm else answer["tokens"]
        if what == "lie: prompt":
            if is_vllm:
                answer["usage"]["prompt_tokens"] += 1
            else:
                answer["tokens_evaluated"] += 1
        elif what == "lie: more":
            tokens[:] = [1] * 300
        elif what == "lie: foreign":
            tokens[0] = word_model.VOCAB
        elif what == "lie: fewer":
            del tokens[2:]
            if is_vllm:
                answer["choices"][0]["finish_reason"] = "length"
            else:
                answer["stop_type"] = "limit"
        elif what == "lie: form":
            answer.clear()
            answer["choices"] = "none"
        else:
            raise AssertionError(what)
        return answer

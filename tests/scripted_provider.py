"""A provider that plays a model over a real wire: where there are tools two searches, one after the other, and then an answer word by word.

What it says follows from the conversation alone, so that an answer can be held against its question whoever asked, and however often.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NUM_SEARCHES = 2
PAUSE_S = 0.004
"""Between two pieces: what makes moments in the middle of an answer."""


def answer_to(question: str) -> str:
    """The whole answer to a question."""
    return f"Answer to {question}: " + " ".join(f"word{number}" for number in range(12))


def pieces_for(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The deltas of the next answer."""
    messages: list[dict[str, Any]] = body["messages"]
    place = max(number for number, message in enumerate(messages) if message["role"] == "user")
    content = messages[place]["content"]
    question = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    done = sum(message["role"] == "tool" for message in messages[place:])
    if body.get("tools") and done < NUM_SEARCHES:
        called = {"name": "web_search", "arguments": json.dumps({"query": f"rivers {done}"})}
        return [{"tool_calls": [{"index": 0, "id": f"call_{done}", "type": "function", "function": called}]}]
    return [{"content": word + " "} for word in answer_to(question).split(" ")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        let_in = self._is_let_in()
        rows = [{"id": "script", "object": "model", "max_model_len": 4096}]
        told = json.dumps({"object": "list", "data": rows} if let_in else {"error": {"message": "who are you?"}}).encode()
        self.send_response(200 if let_in else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def _is_let_in(self) -> bool:
        key = self.server.key  # type: ignore[attr-defined]
        return key is None or self.headers.get("authorization") == f"Bearer {key}"

    def do_POST(self) -> None:
        assert self._is_let_in()
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        deltas = pieces_for(body)
        reason = "tool_calls" if "tool_calls" in deltas[0] else "stop"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            for delta in deltas:
                time.sleep(PAUSE_S)
                self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            used = {"prompt_tokens": 10, "completion_tokens": len(deltas), "total_tokens": 10 + len(deltas)}
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
            self._event({"choices": [], "usage": used})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # who asked was killed
        self.close_connection = True

    def _event(self, told: dict[str, Any]) -> None:
        self.wfile.write(
            b"data: " + json.dumps({"id": "x", "object": "chat.completion.chunk", "model": "script", **told}).encode() + b"\n\n"
        )
        self.wfile.flush()


class ScriptedProvider:
    """The provider on a port of its own, which wants this key if there is one; close it."""

    def __init__(self, key: str | None = None) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.key = key  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join(20)
        self._server.server_close()

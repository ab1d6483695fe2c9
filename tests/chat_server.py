"""A real HTTP server that speaks chat completions, and misbehaves where a test wants it to."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | int | bytes | float  # reply text; HTTP status; raw body; seconds to wait before replying safe
SAFE, UNSAFE = '{"unsafe": false}', '{"unsafe": true}'


class Server(ThreadingHTTPServer):
    """Speaks chat completions; `script(messages, attempt)` decides what each request gets."""

    daemon_threads = True

    def __init__(self, script: Callable[[dict[str, str], int], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.bodies, self.lock = script, list[dict[str, Any]](), threading.Lock()
        self.attempts: dict[str, int] = {}
        self.active = self.most_active = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = json.loads(body["messages"][1]["content"])
        key = json.dumps(texts)
        with self.server.lock:
            self.server.bodies.append(body)
            attempt = self.server.attempts[key] = self.server.attempts.get(key, 0) + 1
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
        try:
            answer = self.server.script(texts, attempt)
            if isinstance(answer, float):
                time.sleep(answer)
                answer = SAFE
        finally:
            with self.server.lock:
                self.server.active -= 1
        if isinstance(answer, int):
            self.reply(answer, b'{"error": {"message": "no"}}')
        elif isinstance(answer, bytes):
            self.reply(200, answer)
        else:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
            completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            self.reply(200, json.dumps(completion).encode())

    def reply(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("retry-after-ms", "5")
            self.end_headers()
            self.wfile.write(body)
        except BrokenPipeError:  # the client has given up waiting, as it should
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass

"An OpenAI-compatible server on loopback that answers as it is told: well, slowly, or not at all."

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def body(self):
        "What was sent: as long as the head says, or in chunks."
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        asked = json.loads(self.body())
        server = self.server
        server.hits += 1
        if server.status != 200:
            error = {"error": {"message": "busy", "type": "server_error"}}
            return self._whole(server.status, error)
        time.sleep(server.delay_s)
        if asked.get("stream"):
            return self._stream()
        message = {"role": "assistant", "content": "hi there"}
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._whole(200, _answer("chat.completion", choice) | {"usage": usage})

    def _whole(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self._headers("application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _headers(self, kind):
        self.send_header("content-type", kind)
        for name, value in self.server.extra.items():
            self.send_header(name, value)

    def _stream(self):
        self.send_response(200)
        self._headers("text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for i in range(self.server.tokens):
            if i == self.server.breaks_at:
                return self.connection.close()
            self._chunk({"delta": {"role": "assistant", "content": f"t{i} "}})
            time.sleep(self.server.pace_s)
        self._chunk({"delta": {}, "finish_reason": "stop"})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, choice):
        chunk = _answer("chat.completion.chunk", {"index": 0, "finish_reason": None} | choice)
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()


def _answer(kind, choice):
    return {"id": "c", "object": kind, "created": 1, "model": "m", "choices": [choice]}


class StubProvider(ThreadingHTTPServer):
    "Serves until its `with` block ends."

    daemon_threads = True

    def __init__(self, status=200, **headers):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.hits, self.delay_s = status, 0, 0.0
        self.tokens, self.pace_s, self.breaks_at = 5, 0.01, -1
        self.extra = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def deployment(self, name, group="m"):
        return {
            "model_name": group,
            "litellm_params": {"model": "openai/x", "api_base": self.base, "api_key": "none"},
            "model_info": {"id": name},
        }

    def __enter__(self):
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

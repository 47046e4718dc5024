"""A stand-in for Telegram's Bot API on a loopback port: it serves one voice message and keeps the bot's replies."""

import contextlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

TOKEN = "123456:made-up"
CHAT = {"id": 7, "type": "private", "first_name": "Ann"}
ANN = {"id": 7, "is_bot": False, "first_name": "Ann"}
BOT = {"id": 123456, "is_bot": True, "first_name": "Bot", "username": "made_up_bot"}
VOICE = {"file_id": "voice-1", "file_unique_id": "1", "duration": 5, "mime_type": "audio/ogg"}


@contextlib.contextmanager
def telegram(voice):
    """Serve one message with the bytes `voice`; gives the base URL and the list of what the bot replied."""
    replies = []
    waiting = [{"update_id": 1, "message": {"message_id": 1, "date": 1, "chat": CHAT, "from": ANN, "voice": VOICE}}]

    class Api(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(voice, "application/octet-stream")

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("utf-8", "replace")
            method = self.path.rpartition("/")[2].lower()
            result = True
            if method == "getme":
                result = BOT
            elif method == "getfile":
                result = {"file_id": "voice-1", "file_unique_id": "1", "file_path": "voice/file_1.oga"}
            elif method == "getupdates":
                result, waiting[:] = list(waiting), []
                time.sleep(0 if result else 0.2)
            elif method == "sendmessage":
                # One bot sends a URL-encoded form, the other a multipart one.
                form = re.search(r'name="text"\r\n(?:[^\r]+\r\n)*\r\n(.*?)\r\n--', body, re.DOTALL)
                replies.append(form[1] if form else parse_qs(body)["text"][0])
                result = {"message_id": 2, "date": 2, "chat": CHAT, "from": BOT, "text": replies[-1]}
            self.answer(json.dumps({"ok": True, "result": result}).encode(), "application/json")

        def answer(self, body, content_type):
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", replies
        server.shutdown()

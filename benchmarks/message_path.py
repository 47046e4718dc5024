"""Which of the project's files one voice message passes through, and how often it changes from one file to another.

A real server with a real model runs in this process and is asked over loopback. The first message warms it up; the
second is traced with `sys.setprofile`, which reports each call of a Python function and each time that a coroutine or a
generator goes on. The decoder is another process and is not traced.

    python benchmarks/message_path.py [--model base] [--steps]

Bars: at most 18 files and 90 changes.
"""

import argparse
import http.client
import json
import os
import signal
import sys
import threading
import time
from itertools import groupby
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from measuring import ROOT, VOICE

from localwhisper_server import server
from localwhisper_server.operations import host
from localwhisper_server.settings import Settings

PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("localwhisper_client", "localwhisper_server"))
MOST_FILES, MOST_CHANGES = 18, 90
START_SECONDS = 300.0


class Trace:
    """The functions of the project that were entered, in order, by whichever thread, while `on` is true."""

    def __init__(self) -> None:
        self.on = False
        self.entered: list[tuple[str, str]] = []
        """File and function."""

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        """Record one event; `sys.setprofile` calls this."""
        if self.on and event == "call" and frame.f_code.co_filename.startswith(PACKAGES):
            self.entered.append((frame.f_code.co_filename, frame.f_code.co_qualname))


def form() -> tuple[bytes, dict[str, str]]:
    """Return the body of an upload and its headers, as the SDK sends them."""
    head = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    head += '--b\r\nContent-Disposition: form-data; name="file"; filename="voice.ogg"\r\n\r\n'
    return head.encode() + VOICE.read_bytes() + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


def ask(url: str, trace: Trace) -> None:
    """Wait until the server is ready, send two messages, and trace the second."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=START_SECONDS)

    def send(method: str, path: str, *upload: object) -> dict[str, object]:
        connection.request(method, path, *upload)  # type: ignore[arg-type] # a body and headers, or neither
        answer: dict[str, object] = json.load(connection.getresponse())
        return answer

    def ready() -> bool:
        try:
            return bool(send("GET", "/health")["ready"])
        except ConnectionError:
            connection.close()  # it does not listen yet
            return False

    until = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > until:
            raise SystemExit("the server was not ready in time")
        time.sleep(0.1)
    send("POST", "/v1/audio/transcriptions", *form())
    time.sleep(0.5)  # the first message is logged and counted after its answer
    trace.on = True
    answer = send("POST", "/v1/audio/transcriptions", *form())
    time.sleep(0.2)  # the log line and what is tidied up come after the answer
    trace.on = False
    connection.close()
    assert str(answer["text"]).strip(), answer


def ask_and_stop(url: str, trace: Trace) -> None:
    """Do what `ask` does, then stop this process's server."""
    sys.setprofile(None)  # the client's own thread is no part of the path
    try:
        ask(url, trace)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Print the figures; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description="The files that one voice message passes through.")
    parser.add_argument("--model", default="base")
    parser.add_argument("--steps", action="store_true", help="print each stay in a file, with the functions entered")
    options = parser.parse_args()
    trace = Trace()
    listening = host.listen("127.0.0.1", 0)
    settings = Settings(model=options.model, log_file="none")
    client = threading.Thread(target=ask_and_stop, args=(server.url(listening), trace))
    threading.setprofile(trace)
    sys.setprofile(trace)
    client.start()
    server.run(settings, listening, environ={})
    client.join()
    sys.setprofile(None)
    threading.setprofile(None)

    stays = [(file, [name for _, name in group]) for file, group in groupby(trace.entered, key=lambda entry: entry[0])]
    if options.steps:
        for file, names in stays:
            print(f"{Path(file).relative_to(ROOT)}: {', '.join(names)}")
        print()
    files = list(dict.fromkeys(file for file, _ in stays))
    print("file, in the order in which each is first entered; how often it is entered from another one")
    for number, file in enumerate(files, 1):
        print(f"{number:3}  {Path(file).relative_to(ROOT)!s:60} {sum(stay == file for stay, _ in stays):4}")
    print(f"{len(files)} files (bar {MOST_FILES}), {len(stays) - 1} changes of file (bar {MOST_CHANGES})")
    return 0 if len(files) <= MOST_FILES and len(stays) - 1 <= MOST_CHANGES else 1


if __name__ == "__main__":
    sys.exit(main())

"""LiteLLM's proxy as its documentation says: a model_list in config.yaml, asked by the OpenAI SDK."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import openai
from ports import free_port

VOICE = Path(sys.argv[1])
MASTER_KEY = f"sk-{secrets.token_hex(16)}"
CONFIG = f"""
model_list:
  - model_name: whisper
    litellm_params:
      model: openai/whisper-1
      api_base: {os.environ["OPENAI_BASE_URL"]}
      api_key: {os.environ["OPENAI_API_KEY"]}
    model_info:
      mode: audio_transcription
general_settings:
  master_key: {MASTER_KEY}
"""


def wait_until_ready(url, process):
    while process.poll() is None:
        try:
            return urllib.request.urlopen(f"{url}/health/readiness", timeout=5).close()
        except OSError:
            time.sleep(0.5)
    sys.exit("the proxy stopped")


with tempfile.TemporaryDirectory() as folder:
    config = Path(folder, "config.yaml")
    config.write_text(CONFIG)
    port = free_port()
    command = [
        Path(sys.executable).with_name("litellm"),
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    proxy = subprocess.Popen(command, stdout=sys.stderr)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", proxy)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=MASTER_KEY, max_retries=0)

        def ask(**fields):
            with VOICE.open("rb") as file:
                return client.audio.transcriptions.create(file=file, model="whisper", **fields)

        transcripts = {
            "json": ask().text,
            "language": ask(language="en", temperature=0, prompt="Shopping.").text,
            "verbose_json": ask(response_format="verbose_json", timestamp_granularities=["segment"]).text,
        }
    finally:
        proxy.terminate()
        proxy.wait(30)
print(json.dumps(transcripts))

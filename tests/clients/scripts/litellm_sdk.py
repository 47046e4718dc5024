"""LiteLLM's SDK as its documentation says: transcription() and atranscription() with api_base."""

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path

import litellm

VOICE = Path(sys.argv[1])
sdk = os.environ.get("SDK")


def fields(client_class):
    if sdk:
        return {"client": getattr(importlib.import_module(sdk), client_class)()}
    return {"api_base": os.environ.get("OPENAI_BASE_URL")}


def ask(model="whisper-1", **options):
    with VOICE.open("rb") as file:
        return litellm.transcription(model=model, file=file, **fields("OpenAI"), **options)


async def ask_async():
    with VOICE.open("rb") as file:
        return (await litellm.atranscription(model="openai/whisper-1", file=file, **fields("AsyncOpenAI"))).text


verbose = ask(response_format="verbose_json", timestamp_granularities=["word"])
assert verbose["words"]
transcripts = {
    "default": ask().text,
    "gpt-4o": ask("openai/gpt-4o-transcribe", response_format="json", language="en").text,
    "gpt-transcribe": ask("openai/gpt-transcribe", response_format="json", keywords=["milk"], languages=["en"]).text,
    "verbose": verbose.text,
    **{name: ask(response_format=name).text for name in ("text", "srt", "vtt")},
    "async": asyncio.run(ask_async()),
}
print(json.dumps(transcripts))

"""The OpenAI SDK for Python as its README says: module, client and async client, each format, a stream."""

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path

openai = importlib.import_module(os.environ.get("SDK", "openai"))
VOICE = Path(sys.argv[1])

client = openai.OpenAI()


def ask(**fields):
    with VOICE.open("rb") as file:
        return client.audio.transcriptions.create(**{"file": file, "model": "whisper-1", **fields})


async def ask_async():
    async with openai.AsyncOpenAI() as async_client:
        plain = await async_client.audio.transcriptions.create(file=VOICE, model="gpt-4o-mini-transcribe")
        stream = await async_client.audio.transcriptions.create(file=VOICE, model="gpt-4o-transcribe", stream=True)
        return plain.text, "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])


transcripts = {
    "module": openai.audio.transcriptions.create(file=VOICE, model="whisper-1").text,
    "json": ask().text,
    **{name: ask(response_format=name) for name in ("text", "srt", "vtt")},
    "raw": client.audio.transcriptions.with_raw_response.create(file=VOICE, model="whisper-1").parse().text,
    # Newer fields than the oldest of these SDKs knows.
    "extra_body": ask(model="gpt-transcribe", extra_body={"languages": ["en"], "keywords": ["milk", "bread"]}).text,
}
verbose = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"])
assert verbose.language == "english"
assert verbose.segments
transcripts["verbose_json"] = verbose.text
transcripts["words"] = " ".join(word.word for word in verbose.words)
transcripts["async"], transcripts["async_stream"] = asyncio.run(ask_async())
try:
    ask(file=("a.ogg", b"no sound"))
except openai.BadRequestError as error:
    refused = error.request_id
assert refused
print(json.dumps(transcripts))

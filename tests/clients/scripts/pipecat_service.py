"""pipecat as its documentation says: OpenAISTTService, which transcribes a segment at a time."""

import asyncio
import json
import os
import sys
from pathlib import Path

from pipecat.frames.frames import TranscriptionFrame
from pipecat.services.openai.stt import OpenAISTTService

SEGMENT = Path(sys.argv[2]).read_bytes()


async def ask(*, include_prob_metrics=False, **settings):
    service = OpenAISTTService(
        api_key=os.environ["OPENAI_API_KEY"],
        base_url=os.environ.get("OPENAI_BASE_URL"),
        include_prob_metrics=include_prob_metrics,
        settings=OpenAISTTService.Settings(**settings),
    )
    frames = [frame async for frame in service.run_stt(SEGMENT)]
    assert all(isinstance(frame, TranscriptionFrame) for frame in frames), frames
    return " ".join(frame.text for frame in frames)


async def main():
    transcripts = {
        "default": await ask(),
        "keywords": await ask(keywords=["milk", "bread"]),
        "whisper-1": await ask(model="whisper-1", temperature=0.0, prompt="Shopping."),
        "whisper-1 probabilities": await ask(model="whisper-1", include_prob_metrics=True),
        "gpt-4o-transcribe probabilities": await ask(model="gpt-4o-transcribe", include_prob_metrics=True),
    }
    print(json.dumps(transcripts))


asyncio.run(main())

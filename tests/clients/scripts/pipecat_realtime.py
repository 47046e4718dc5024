"""pipecat as its documentation says: OpenAIRealtimeSTTService in a pipeline, with the server's turn detection."""

import asyncio
import json
import os
import sys
import wave

from pipecat.frames.frames import EndFrame, InputAudioRawFrame, TranscriptionFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.stt import OpenAIRealtimeSTTService

SILENCE_SECONDS = 1.5


class Listener(FrameProcessor):
    """Keeps the transcripts."""

    def __init__(self):
        super().__init__()
        self.texts, self.done = [], asyncio.Event()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            self.texts.append(frame.text)
            if "home" in frame.text:
                self.done.set()
        await self.push_frame(frame, direction)


async def ask(**settings):
    base_url = os.environ.get("OPENAI_BASE_URL")
    address = {"base_url": base_url.replace("http", "ws", 1) + "/realtime"} if base_url else {}
    service = OpenAIRealtimeSTTService(
        api_key=os.environ["OPENAI_API_KEY"],
        **address,
        turn_detection=None,
        settings=OpenAIRealtimeSTTService.Settings(**settings),
    )
    listener = Listener()
    task = PipelineTask(Pipeline([service, listener]))
    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    with wave.open(sys.argv[2]) as file:
        rate = file.getframerate()
        sound = file.readframes(file.getnframes()) + bytes(int(2 * rate * SILENCE_SECONDS))
    size = rate // 50 * 2
    for at in range(0, len(sound), size):
        await task.queue_frame(InputAudioRawFrame(sound[at : at + size], rate, 1))
        await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        await listener.done.wait()
    await task.queue_frame(EndFrame())
    await running
    return " ".join(listener.texts)


async def main():
    transcripts = {"default": await ask(), "whisper-1": await ask(model="whisper-1", prompt="Shopping.")}
    print(json.dumps(transcripts))


asyncio.run(main())

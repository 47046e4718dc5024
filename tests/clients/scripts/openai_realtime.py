"""openai (Python) as its README says: client.realtime.connect with the intent of a transcription."""

import asyncio
import base64
import importlib
import json
import os
import sys
import wave

openai = importlib.import_module(os.environ.get("SDK", "openai"))
client = openai.OpenAI(max_retries=0)


def ask(detection, **transcription):
    with wave.open(sys.argv[2]) as file:
        sound = file.readframes(file.getnframes()) + bytes(2 * file.getframerate())
        form = {"type": "audio/pcm", "rate": file.getframerate()}
    said = ""
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        audio = {"input": {"format": form, "turn_detection": detection, "transcription": transcription}}
        connection.session.update(session={"type": "transcription", "audio": audio})
        for at in range(0, len(sound), 3200):
            connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + 3200]).decode())
        if detection is None:
            connection.input_audio_buffer.commit()
        for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.delta":
                said += event.delta
            elif event.type == "conversation.item.input_audio_transcription.completed":
                assert event.transcript in said
                if "home" in said or detection is None:
                    return said
    return said


async def ask_async():
    with wave.open(sys.argv[2]) as file:
        sound, form = file.readframes(file.getnframes()), {"type": "audio/pcm", "rate": file.getframerate()}
    async with (
        openai.AsyncOpenAI(max_retries=0) as async_client,
        async_client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        audio = {"input": {"format": form, "turn_detection": None, "transcription": {"model": "gpt-live-transcribe"}}}
        await connection.session.update(session={"type": "transcription", "audio": audio})
        await connection.input_audio_buffer.append(audio=base64.b64encode(sound).decode())
        await connection.input_audio_buffer.commit()
        async for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.completed":
                return event.transcript
    return ""


transcripts = {
    "async": asyncio.run(ask_async()),
    "server vad": ask({"type": "server_vad", "silence_duration_ms": 700}, model="whisper-1", language="en"),
    "semantic vad": ask({"type": "semantic_vad"}, model="gpt-live-transcribe", languages=["en", "de"]),
    "commit": ask(None, model="gpt-realtime-whisper"),
}
print(json.dumps(transcripts))

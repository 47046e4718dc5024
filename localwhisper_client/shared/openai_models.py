"""The names of OpenAI's speech-to-text models, best known first. Client and server share them."""

from __future__ import annotations

WHISPER_1 = "whisper-1"
GPT_4O_TRANSCRIBE = "gpt-4o-transcribe"
GPT_4O_MINI_TRANSCRIBE = "gpt-4o-mini-transcribe"
GPT_4O_MINI_TRANSCRIBE_2025_12_15 = "gpt-4o-mini-transcribe-2025-12-15"
GPT_4O_TRANSCRIBE_DIARIZE = "gpt-4o-transcribe-diarize"
GPT_TRANSCRIBE = "gpt-transcribe"

NAMES = (
    WHISPER_1,
    GPT_4O_TRANSCRIBE,
    GPT_4O_MINI_TRANSCRIBE,
    GPT_4O_MINI_TRANSCRIBE_2025_12_15,
    GPT_4O_TRANSCRIBE_DIARIZE,
    GPT_TRANSCRIBE,
)

LIVE_NAMES = ("gpt-live-transcribe", "gpt-realtime-whisper")
"""Models that only realtime sessions have."""

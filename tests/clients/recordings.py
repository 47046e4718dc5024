"""The recording that other projects' clients transcribe."""

from __future__ import annotations

import wave
from pathlib import Path

import av

ENGLISH = Path(__file__).parents[2] / "localwhisper_client" / "demo.ogg"


def as_wav(source: Path, target: Path) -> Path:
    """Write a recording as WAV with 16,000 samples a second; return where it is."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    with av.open(source) as recording, wave.open(str(target), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        for frame in (*recording.decode(audio=0), None):
            for part in resampler.resample(frame):
                file.writeframes(part.to_ndarray().tobytes())
    return target

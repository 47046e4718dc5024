"""Use the OpenAI SDK without this package: the variable OPENAI_BASE_URL alone leads to the LAN server.

OPENAI_BASE_URL=http://localhost:5000/v1 OPENAI_API_KEY=any python examples/openai_base_url.py voice.ogg
"""

import sys
from pathlib import Path

import openai


def main() -> None:
    """Print each segment with its time in seconds."""
    transcript = openai.OpenAI().audio.transcriptions.create(
        file=Path(sys.argv[1]), model="whisper-1", response_format="verbose_json"
    )
    for segment in transcript.segments or []:
        print(f"{segment.start:6.1f}  {segment.text.strip()}")


if __name__ == "__main__":
    main()

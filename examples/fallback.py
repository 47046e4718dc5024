"""Ask the LAN server first, and OpenAI's cloud if that PC is off; print which of the two answered.

    LOCALWHISPER_BASE_URL=http://pc:5000/v1 OPENAI_API_KEY=sk-… python examples/fallback.py voice.ogg

The environment may be stricter than the code: with LOCALWHISPER_POLICY=local_only, the cloud is not asked.
"""

import sys
from pathlib import Path

import localwhisper
from localwhisper_client import Attempt, Event


def show(event: Event) -> None:
    """Print the result of each attempt."""
    if isinstance(event, Attempt):
        print(f"{event.backend}: {event.verdict} {event.reason}".rstrip(), file=sys.stderr)


def main() -> None:
    """Print the words of one file."""
    client = localwhisper.LocalWhisper(policy="cloud", on_event=show)
    print(client.audio.transcriptions.create(file=Path(sys.argv[1]), model="whisper-1").text)


if __name__ == "__main__":
    main()

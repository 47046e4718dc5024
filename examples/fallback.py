"""The LAN server first, OpenAI's cloud when the PC is off, and a line that says which of the two it was.

    LOCALWHISPER_BASE_URL=http://pc:5000/v1 LOCALWHISPER_POLICY=cloud OPENAI_API_KEY=sk-… \
        python examples/fallback.py voice.ogg

Without LOCALWHISPER_POLICY=cloud nothing ever leaves the LAN, and no key is needed.
"""

import sys
from pathlib import Path

import localwhisper
from localwhisper_client import Attempt, Event


def tell(event: Event) -> None:
    """Print what happened to a backend."""
    if isinstance(event, Attempt):
        print(f"{event.backend}: {event.verdict} {event.reason}".rstrip(), file=sys.stderr)


def main() -> None:
    """Print the words of one file."""
    client = localwhisper.LocalWhisper(policy="cloud", on_event=tell)
    print(client.audio.transcriptions.create(file=Path(sys.argv[1]), model="whisper-1").text)


if __name__ == "__main__":
    main()

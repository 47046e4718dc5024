"""How large a batch pays on this machine: measured at the start, since no table knows every card and CPU."""

from collections.abc import Callable
from importlib.resources import files

from localwhisper_server.audio import pool
from localwhisper_server.types import AudioChunk, BatchLimits, Voice
from localwhisper_server.whisper.chunks import Chunk
from localwhisper_server.whisper.engine import Engine, find_speech
from localwhisper_server.whisper.model_manager import is_out_of_memory
from localwhisper_server.whisper.window import FULL_FRAMES, LONGEST_SECONDS, frames

# A larger batch has to save at least this part of the time per chunk to be worth the wait.
LEAST_GAIN = 0.05
# A whole batch may take so long, and a long recording's part of it so long: what a short message may have to wait for.
# Measured with one worker, which has the memory's whole bandwidth; two beside each other take half as long again.
BATCH_SECONDS = 2.5
SHARE_SECONDS = 0.5
# A chunk of a long recording, however slow the machine.
LEAST_SHARE = frames(LONGEST_SECONDS, full=False)
SIZES_ON_CPU = (2, 8)
SIZES_ON_GPU = (4, 16, 32)


def limits(engine: Engine, message: Chunk, *, on_cpu: bool, items: int, clock: Callable[[], float]) -> BatchLimits:
    """Return the limits of a batch on this engine; `items` above 0 sets their number by hand.

    Decodes `message` several times at once: as long as more at once fit into the memory and save time per chunk, still
    more are tried. How fast that goes is measured in any case.
    """
    sizes: tuple[int, ...] = SIZES_ON_CPU if on_cpu else SIZES_ON_GPU
    sizes = (min(items, sizes[0]),) if items else sizes
    best, seconds = 1, float("inf")
    for size in sizes:
        started = clock()
        try:
            engine.run([message] * size)
        except (RuntimeError, MemoryError) as failure:
            if not is_out_of_memory(failure):
                raise
            break
        per_chunk = (clock() - started) / size
        if per_chunk > seconds * (1 - LEAST_GAIN):
            break
        best, seconds = size, per_chunk
    best = items or best
    frames_per_second = message.frames / max(seconds, 1e-6)
    most = max(FULL_FRAMES, best * message.frames, int(BATCH_SECONDS * frames_per_second))
    share = max(LEAST_SHARE, int(SHARE_SECONDS * frames_per_second))
    return BatchLimits(items=best, frames=most, share=share, end=most)


def voice_message() -> AudioChunk:
    """Return the recording that the demo uses, too: five seconds of speech that every install has."""
    with files("localwhisper_client").joinpath("demo.ogg").open("rb") as file:
        samples = pool.decode(file, max_seconds=60)
    return AudioChunk(samples, 0.0, tuple(find_speech(samples, Voice())))

"""How large a batch pays on this machine: measured, since no table lists every card and CPU."""

from collections.abc import Callable

from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import Chunk
from localwhisper_server.whisper.decoding_rules import FULL_FRAMES, LONGEST_SECONDS, window_frames
from localwhisper_server.whisper.engine import Engine
from localwhisper_server.whisper.model_manager import is_out_of_memory

# A larger batch has to save at least this part of the time per chunk.
MIN_GAIN = 0.05
# How long a batch, and one request's share of it, may take: a short message may have to wait for it. Measured with one
# worker, which has the memory's whole bandwidth; two at the same time take half as long again.
BATCH_SECONDS = 2.5
SHARE_SECONDS = 0.5
# The share holds at least one chunk of a long recording, however slow the machine.
MIN_SHARE_FRAMES = window_frames(LONGEST_SECONDS, full_window=False)
CPU_SIZES = (2, 8)
GPU_SIZES = (4, 16, 32)


def measure_limits(
    engine: Engine, message: Chunk, *, on_cpu: bool, items: int, clock: Callable[[], float]
) -> BatchLimits:
    """Return the limits of a batch on this engine; `items` above 0 is the number of chunks, as set by the user.

    Decodes several copies of `message` at once, and then more, while they fit into memory and save time per chunk. The
    speed is measured in any case.
    """
    sizes: tuple[int, ...] = CPU_SIZES if on_cpu else GPU_SIZES
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
        if per_chunk > seconds * (1 - MIN_GAIN):
            break
        best, seconds = size, per_chunk
    best = items or best
    frames_per_second = message.frames / max(seconds, 1e-6)
    frames = max(FULL_FRAMES, best * message.frames, int(BATCH_SECONDS * frames_per_second))
    share = max(MIN_SHARE_FRAMES, int(SHARE_SECONDS * frames_per_second))
    return BatchLimits(items=best, frames=frames, share=share, end=frames)

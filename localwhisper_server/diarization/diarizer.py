"""Diarization beside the transcription: one thread of low priority works on all recordings in turns."""

import asyncio
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from localwhisper_server.diarization.clustering import cluster
from localwhisper_server.diarization.networks import Embedding, Networks
from localwhisper_server.diarization.timeline import Timeline
from localwhisper_server.diarization.windows import Window, Windower
from localwhisper_server.errors import Stopping
from localwhisper_server.types import SAMPLE_RATE, Samples

# A recording that is decoded faster than it is diarized waits when so much of it is ahead: 8 MB.
AHEAD_SECONDS = 120.0
# Below the threads that transcribe: a short message of somebody else must not wait for this.
NICENESS = 10


class Diarizer:
    """Starts a `Diarization` for each recording.

    `check` raises NoDiarization if packages are missing. `load` returns the networks; it is called once, when needed.
    """

    def __init__(self, load: Callable[[], Networks], check: Callable[[], None] = lambda: None) -> None:
        self._load = load
        self._check = check
        self._begun: weakref.WeakSet[Diarization] = weakref.WeakSet()
        self._networks: Networks | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="localwhisper-diarize", initializer=_lower_priority)

    def begin(self) -> "Diarization":
        """Return the diarization of a new recording.

        Raises:
            NoDiarization: the packages for it are not installed.

        """
        self._check()
        diarization = Diarization(self.networks, self._thread)
        self._begun.add(diarization)
        return diarization

    def networks(self) -> Networks:
        """Return the networks; load them if necessary. Only the diarizing thread may call this.

        Raises:
            NoDiarization: their files are missing.

        """
        if self._networks is None:
            self._networks = self._load()
        return self._networks

    def close(self) -> None:
        """End the thread after the block in hand; the requests that wait for others fail."""
        for diarization in list(self._begun):
            diarization.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class Diarization:
    """Who speaks when in one recording. `add` its blocks in order, from any one thread, then ask for the `timeline`.

    The thread takes a block of each recording in turn, so that a long one does not keep a short one waiting.
    """

    def __init__(self, networks: Callable[[], Networks], thread: ThreadPoolExecutor) -> None:
        self._networks = networks
        self._thread = thread
        self._changed = threading.Condition()
        self._blocks: deque[Samples] = deque()
        self._samples = 0  # in `_blocks`
        self._working = False
        self._closed = False
        self._failure: Exception | None = None
        self._windower: Windower | None = None
        self._windows: list[Window] = []

    def add(self, block: Samples) -> None:
        """Take the next block; wait while too much is ahead already.

        Raises:
            NoDiarization: the networks' files are missing.

        """
        with self._changed:
            self._changed.wait_for(lambda: self._samples < AHEAD_SECONDS * SAMPLE_RATE or self._closed)
            if self._failure is not None:
                raise self._failure
            if self._closed:
                return
            self._blocks.append(block)
            self._samples += block.size
            if not self._working:
                self._working = True
                self._thread.submit(self._work)

    async def timeline(self, references: Sequence[Samples] = (), *, most: int | None = None) -> Timeline:
        """Return who speaks when in all that was added, `most` speakers at most.

        Column i of the timeline is the speaker of reference i; the other speakers follow.

        Raises:
            NoDiarization: the networks' files are missing.
            Stopping: the diarizer was closed meanwhile.

        """
        await asyncio.to_thread(self._wait)
        try:
            return await asyncio.wrap_future(self._submit_last(references, most))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Stopping from None  # the thread's work was cancelled, not the request

    def close(self) -> None:
        """Drop all that is not done; `add` then takes nothing."""
        with self._changed:
            self._closed = True
            self._blocks.clear()
            self._samples = 0
            self._changed.notify_all()

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._working or self._closed)
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise Stopping

    def _submit_last(self, references: Sequence[Samples], most: int | None) -> Future[Timeline]:
        with self._changed:
            if self._closed:
                raise Stopping
            return self._thread.submit(self._finish, references, most)

    def _work(self) -> None:
        """Do one block, and queue for the next one behind other recordings."""
        with self._changed:
            block = self._blocks.popleft() if self._blocks else None
            self._samples -= 0 if block is None else block.size
            self._changed.notify_all()
        try:
            if block is not None:
                self._windows += self._opened().add(block)
        except Exception as failure:  # noqa: BLE001 - `timeline` raises it
            self._failure = failure
            self.close()
        with self._changed:
            self._working = bool(self._blocks)
            self._changed.notify_all()
            if self._working:
                self._thread.submit(self._work)

    def _opened(self) -> Windower:
        if self._windower is None:
            self._windower = Windower(self._networks())
        return self._windower

    def _finish(self, references: Sequence[Samples], most: int | None) -> Timeline:
        self._windows += self._opened().end()
        known = [embedded(self._networks(), reference) for reference in references]
        voices = [voice for window in self._windows for voice in window.voices]
        found = cluster(voices, references=known, most=most)
        return Timeline.of(self._windows, found)


def embedded(networks: Networks, samples: Samples) -> Embedding:
    """Return the embedding of the one speaker in a short recording; of all of it if no speech is found."""
    windower = Windower(networks)
    voices = [voice for window in (*windower.add(samples), *windower.end()) for voice in window.voices]
    if not voices:
        return networks.embedding(samples)
    total = np.sum([voice.embedding * max(voice.seconds, 0.1) for voice in voices], axis=0)
    unit: Embedding = total / max(float(np.linalg.norm(total)), 1e-9)
    return unit


def _lower_priority() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        # A server with a low priority already may not raise it again.
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))

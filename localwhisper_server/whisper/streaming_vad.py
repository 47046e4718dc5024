"""Voice activity detection as sound arrives, with the model of `vad`, whose state is kept from call to call."""

import numpy as np
from faster_whisper.vad import get_vad_model

from localwhisper_server.types import Samples

WINDOW = 512
# Each window is judged with so many samples before it.
_CONTEXT = 64
_STATE = (1, 1, 128)


class StreamingDetector:
    """Follows one stream at 16 kHz. Any thread may call it, one at a time; a window takes about 0.1 ms."""

    def __init__(self) -> None:
        self._session = get_vad_model().session
        self._before = np.zeros(_CONTEXT, np.float32)
        self._hidden = np.zeros(_STATE, np.float32)
        self._cell = np.zeros(_STATE, np.float32)

    def __call__(self, samples: Samples) -> list[float]:
        """Return the probability of speech for each window; `samples` has the shape (n * 512,)."""
        windows = samples.reshape(-1, WINDOW)
        if not windows.size:
            return []
        context = np.concatenate([self._before[None], windows[:-1, -_CONTEXT:]])
        self._before = windows[-1, -_CONTEXT:].copy()
        inputs = {"input": np.concatenate([context, windows], 1), "h": self._hidden, "c": self._cell}
        probabilities, self._hidden, self._cell = self._session.run(None, inputs)
        return [float(probability) for probability in probabilities]

"""The two neural networks, on the CPU: who is active in a window, and the embedding of a voice.

The only importer of onnxruntime and sherpa_onnx, which are imported when the networks are loaded.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from localwhisper_server.types import SAMPLE_RATE, Samples

Activity = npt.NDArray[np.float32]
"""Probability that each of a window's speakers is active: shape (WINDOW_FRAMES, SPEAKERS)."""
Embedding = npt.NDArray[np.float32]
"""A voice as a vector of length 1. Two vectors of one voice have a large inner product."""

# pyannote segmentation 3.0: windows of 10 s, frames of 270 samples (each seen with 991 around it), and at most three
# speakers a window, of whom two at a time.
WINDOW_SAMPLES = 10 * SAMPLE_RATE
WINDOW_FRAMES = 589
FRAME_SAMPLES = 270
SPEAKERS = 3
# The network's classes: nobody, one speaker, two speakers.
CLASSES = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.float32)


class Networks(Protocol):
    """What diarization needs of the networks. Any thread may call them."""

    def activity(self, window: Samples) -> Activity:
        """Return who is active in a window of WINDOW_SAMPLES samples."""
        ...

    def embedding(self, samples: Samples) -> Embedding:
        """Return the embedding of the one voice in `samples`, which are at least 0.1 s."""
        ...


class OnnxNetworks:
    """pyannote segmentation 3.0 and a speaker embedding (CAM++) as ONNX files.

    Each runs in the calling thread alone, so that the thread's priority counts for all of its work.

    Raises:
        ImportError: sherpa-onnx is not installed.
        RuntimeError: a file is no such network.

    """

    def __init__(self, segmentation: Path, embedding: Path) -> None:
        import onnxruntime  # noqa: PLC0415 - optional, and 50 MB that most servers do not need
        import sherpa_onnx  # noqa: PLC0415 - as above

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Its arena would keep the memory of the largest window for ever.
        options.enable_cpu_mem_arena = False
        self._segmentation: Any = onnxruntime.InferenceSession(
            str(segmentation), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._segmentation.get_inputs()[0].name
        config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(embedding), num_threads=1)
        self._embedding: Any = sherpa_onnx.SpeakerEmbeddingExtractor(config)

    def activity(self, window: Samples) -> Activity:
        """Return who is active in a window of WINDOW_SAMPLES samples."""
        (logarithms,) = self._segmentation.run(None, {self._input: window[None, None]})
        found: Activity = np.exp(logarithms[0]) @ CLASSES
        return found

    def embedding(self, samples: Samples) -> Embedding:
        """Return the embedding of the one voice in `samples`, which are at least 0.1 s."""
        stream = self._embedding.create_stream()
        stream.accept_waveform(SAMPLE_RATE, samples)
        stream.input_finished()
        vector = np.array(self._embedding.compute(stream), np.float32)
        unit: Embedding = vector / max(float(np.linalg.norm(vector)), 1e-9)
        return unit

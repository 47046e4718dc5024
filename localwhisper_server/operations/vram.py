"""How much video memory there is and is used, from NVIDIA's own library, where both are there."""

import importlib
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def reader(load: Callable[[str], Any] = importlib.import_module) -> Callable[[], list[tuple[str, int, int]]] | None:
    """Return a function that reads (device number, bytes used, bytes in all) of each device; None without a card.

    Needs `nvidia-ml-py`, which the extra `[cuda]` brings; it reads the driver and takes microseconds. `load` imports.
    """
    try:
        nvml = load("pynvml")
        nvml.nvmlInit()
    except Exception as reason:  # noqa: BLE001 - no package, no driver, no rights: there is nothing to show, no more
        logger.debug("no video memory to show: %s", reason)
        return None

    def read() -> list[tuple[str, int, int]]:
        try:
            infos = [
                nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(number))
                for number in range(nvml.nvmlDeviceGetCount())
            ]
        except nvml.NVMLError as reason:  # the driver was updated, the card fell off the bus
            logger.debug("the video memory could not be read: %s", reason)
            return []
        return [(str(number), info.used, info.total) for number, info in enumerate(infos)]

    return read

"""SVOX Pico, a speech synthesiser that Debian packages with six voices (libttspico0, libttspico-data)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MEMORY_BYTES = 2_500_000
"""What the library is given to work in, as its own command-line program does."""

IDLE, BUSY = 200, 201
"""What `pico_getData` answers: everything is spoken, or there is more."""


def speak(root: Path, text: str, language: str) -> NDArray[np.float32]:
    """Return ``text`` spoken by the voice of ``language``, as samples at 16 kHz.

    Args:
        root: where the packages are unpacked.
        text: any length; no markup.
        language: de-DE, en-GB, en-US, es-ES, fr-FR, it-IT.

    Raises:
        OSError: the library or a voice is missing, or the library reports an error.
    """
    library = ctypes.CDLL(str(next((root / "usr/lib").glob("*/libttspico.so.0*"), root / "libttspico.so.0")))
    lingware = [next((root / "usr/share/pico/lang").glob(f"{language}_*{part}.bin"), None) for part in ("ta", "sg")]
    memory = ctypes.create_string_buffer(MEMORY_BYTES)
    system, engine = ctypes.c_void_p(), ctypes.c_void_p()

    def call(name: str, *arguments: object) -> int:
        status: int = getattr(library, name)(*arguments)
        if status < 0:
            raise OSError(f"{name} answered {status}")
        return status

    call("pico_initialize", memory, ctypes.c_uint32(MEMORY_BYTES), ctypes.byref(system))
    try:
        call("pico_createVoiceDefinition", system, b"voice")
        for path in lingware:
            resource, name = ctypes.c_void_p(), ctypes.create_string_buffer(32)
            call("pico_loadResource", system, str(path).encode(), ctypes.byref(resource))
            call("pico_getResourceName", system, resource, name)
            call("pico_addResourceToVoiceDefinition", system, b"voice", name)
        call("pico_newEngine", system, b"voice", ctypes.byref(engine))
        spoken = bytearray()
        rest = text.encode() + b"\0"  # the zero has it speak what it holds back
        buffer = ctypes.create_string_buffer(1024)
        put, got, kind = ctypes.c_int16(), ctypes.c_int16(), ctypes.c_int16()
        status = BUSY
        while rest or status == BUSY:
            if rest:
                size = ctypes.c_int16(min(len(rest), 30_000))
                call("pico_putTextUtf8", engine, rest, size, ctypes.byref(put))
                rest = rest[put.value :]
            status = BUSY
            while status == BUSY:
                status = call(
                    "pico_getData", engine, buffer, ctypes.c_int16(1024), ctypes.byref(got), ctypes.byref(kind)
                )
                spoken += buffer.raw[: got.value]
    finally:
        library.pico_terminate(ctypes.byref(system), None)
    return np.frombuffer(bytes(spoken), "<i2").astype(np.float32) / np.float32(32768)

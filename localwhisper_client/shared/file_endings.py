"""The endings of the files that recordings come in: what `transcribe` takes from a folder, and what the server decodes.

One list for both. An ending only decides where a name is all there is to go by: a file that is named by itself is
always sent, and the server recognises a container by its bytes.
"""

ENDINGS = frozenset(
    (
        *("3g2", "3gp", "aac", "ac3", "aif", "aifc", "aiff", "amr", "asf", "au", "avi", "awb", "caf", "dts", "eac3"),
        *("f4v", "flac", "flv", "latm", "loas", "m2ts", "m4a", "m4b", "m4v", "mka", "mkv", "mlp", "mov", "mp1", "mp2"),
        *("mp3", "mp4", "mpeg", "mpg", "mpga", "mts", "oga", "ogg", "ogv", "opus", "qt", "snd", "spx", "thd", "ts"),
        *("tta", "vob", "w64", "wav", "wave", "webm", "wma", "wmv", "wv"),
    )
)
"""Lower case, without the dot."""

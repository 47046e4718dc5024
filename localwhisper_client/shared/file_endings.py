"""The endings of the files that recordings come in: what `transcribe` takes from a folder, and what the server decodes.

One list for both. An ending only decides where a name is all there is to go by: a file that is named by itself is
always sent, and the server recognises a container by its bytes.
"""

ENDINGS = frozenset(
    (
        *("3g2", "3gp", "aa", "aac", "ac3", "aea", "aif", "aifc", "aiff", "amr", "ape", "asf", "au", "avi", "awb"),
        *("caf", "dsf", "dts", "dtshd", "eac3", "f4v", "flac", "flv", "gxf", "ircam", "latm", "loas", "m2ts", "m4a"),
        *("m4b", "m4v", "mka", "mkv", "mlp", "mov", "mp1", "mp2", "mp3", "mp4", "mpc", "mpeg", "mpg", "mpga", "mts"),
        *("mxf", "nut", "oga", "ogg", "ogv", "oma", "opus", "qcp", "qt", "ra", "rm", "shn", "snd", "sph", "spx"),
        *("swf", "tak", "thd", "ts", "tta", "vob", "voc", "w64", "wav", "wave", "webm", "wma", "wmv", "wtv", "wv"),
        *("xwma"),
    )
)
"""Lower case, without the dot."""

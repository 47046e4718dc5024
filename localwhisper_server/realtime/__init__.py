"""Realtime transcription without sockets, threads or clocks: sound and events in, events and work out.

`sound` decodes what a client sends, `speech` tracks where somebody speaks, `turns` cuts the sound into items and has
each transcribed as it grows, and `session` speaks OpenAI's realtime protocol around them.
"""

"""Who spoke when: a recording's samples to speakers, and words to those speakers."""

"""The multipart form of the speech routes, for the OpenAPI document."""

from typing import Any

from localwhisper_server.api.form import FORMATS, GRANULARITIES

SPEECH_FORM: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "The recording, in any container."},
                    "model": {
                        "type": "string",
                        "description": "A served model or an OpenAI name; else the one served.",
                    },
                    "language": {"type": "string", "description": "ISO 639 code, BCP 47 tag or English name."},
                    "languages[]": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "Those that may be spoken: each stretch is heard in the likeliest of them.",
                    },
                    "keywords[]": {"type": "array", "items": {"type": "string"}, "description": "Spellings to prefer."},
                    "prompt": {"type": "string", "description": "Text taken as having been said before."},
                    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
                    "temperature": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
                    "timestamp_granularities[]": {
                        "type": "array",
                        "items": {"type": "string", "enum": list(GRANULARITIES)},
                    },
                    "include[]": {"type": "array", "items": {"type": "string", "enum": ["logprobs"]}},
                    "stream": {"type": "boolean", "default": False},
                    "window": {"type": "string", "enum": ["adaptive", "exact"], "default": "adaptive"},
                    "priority": {"type": "string", "enum": ["interactive", "bulk"], "default": "interactive"},
                    "chunking_strategy": {"type": "string", "description": "auto, or an object as JSON."},
                },
            }
        }
    },
}

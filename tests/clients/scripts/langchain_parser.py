"""LangChain as its documentation says: GenericLoader with OpenAIWhisperParser of langchain-community."""

import json
import sys
from pathlib import Path

from langchain_community.document_loaders.blob_loaders import FileSystemBlobLoader
from langchain_community.document_loaders.generic import GenericLoader
from langchain_community.document_loaders.parsers.audio import OpenAIWhisperParser

VOICE = Path(sys.argv[1])


def load(**fields):
    loader = GenericLoader(FileSystemBlobLoader(VOICE.parent, glob=VOICE.name), OpenAIWhisperParser(**fields))
    return " ".join(document.page_content for document in loader.load())


transcripts = {
    "json": load(),
    "language": load(language="en", temperature=0, prompt="Shopping."),
    "srt": load(response_format="srt"),
}
print(json.dumps(transcripts))

"""LangChain's parser for audio, and its loader around it."""

from __future__ import annotations

import imageio_ffmpeg
from calls import AUDIO, BASE_URL, KEY, told
from langchain_community.document_loaders.blob_loaders import FileSystemBlobLoader
from langchain_community.document_loaders.generic import GenericLoader
from langchain_community.document_loaders.parsers.audio import OpenAIWhisperParser
from pydub import AudioSegment

# The parser sends MP3, which pydub makes with an external program.
AudioSegment.converter = imageio_ffmpeg.get_ffmpeg_exe()

blobs = FileSystemBlobLoader(AUDIO.parent, glob=AUDIO.name)
documents = GenericLoader(blobs, OpenAIWhisperParser(api_key=KEY, base_url=BASE_URL)).load()
told("OpenAIWhisperParser", " ".join(document.page_content for document in documents))

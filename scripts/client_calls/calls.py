"""Shared code of the Python clients: the server's address, the audio, and the output of a call's result."""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["AUDIO", "BASE_URL", "KEY", "PROXY_KEY", "PROXY_URL", "ROOT_URL", "told"]

ROOT_URL = os.environ["SERVER_URL"]
BASE_URL = f"{ROOT_URL}/v1"
KEY = os.environ["SERVER_KEY"]
AUDIO = Path(os.environ["AUDIO_FILE"])
# The address of the proxy, which only one of the clients uses.
PROXY_URL = os.environ.get("PROXY_URL", "")
PROXY_KEY = os.environ.get("PROXY_KEY", "")


def told(call: str, text: str) -> None:
    """Print the result of a call as one line of JSON.

    Args:
        call: name of the call.
        text: the transcript.
    """
    print(json.dumps({"call": call, "text": text}), flush=True)

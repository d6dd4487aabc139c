"""``python -m whisper_api``: the same program as ``whisper-api``."""

import sys

from whisper_api.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

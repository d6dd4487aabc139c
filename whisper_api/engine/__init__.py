"""Audio in, :class:`~whisper_api.schema.Transcript` out. Knows no jobs and no HTTP."""

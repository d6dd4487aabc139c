"""Speech recognition: Whisper models behind one interface, their tokens, and word times from cross-attention.

:mod:`model` is the interface; ``onnx`` is the implementation for CPUs. May import the engine's ``context``,
``languages``, ``vad``, ``audio``, ``models`` and ``worker``, and neither ``align`` nor ``diarize``.
"""

"""Whisper on a CPU: ONNX graphs that are built from the published weights, and the beam search over them.

May import the modules of ``whisper`` and the engine's ``audio``, ``models`` and ``worker``.
"""

"""Recognition: Whisper behind one interface, its tokens, and word times from its attention."""

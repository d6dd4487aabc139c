"""Word times: forced alignment of the text with a wav2vec 2.0 CTC model.

May import the engine's ``context``, ``sentences``, ``models`` and ``worker``, and no other stage.
"""

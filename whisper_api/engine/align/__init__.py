"""Word times by forced alignment of the text with a wav2vec 2.0 CTC model."""

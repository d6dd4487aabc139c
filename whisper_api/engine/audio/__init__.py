"""From a file to samples: containers, tracks, decoding, time stamps, memory, mel features. Imports no other stage."""

"""The command line ``whisper-api``.

:mod:`main` parses the arguments and runs a command. Each command is a module of its name (``doctor`` is a folder);
:mod:`flags`, :mod:`outputs` and :mod:`progress` are shared by the commands. May import every other folder.
"""

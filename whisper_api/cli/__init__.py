"""The command line: ``main.py``, a module for each sub-command, and what they share. May import everything."""

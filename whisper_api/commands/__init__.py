"""What the command line's sub-commands do. Each is imported when it is run, and imports the engine when it needs it."""

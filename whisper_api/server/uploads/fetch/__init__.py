"""Files that are fetched from addresses callers name."""

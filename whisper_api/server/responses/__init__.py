"""Answers: problems, results, and responses that notice whether they were delivered."""

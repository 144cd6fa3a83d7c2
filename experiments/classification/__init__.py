"""Classify synthetic points: a small complete task, and the example of how to bring your own."""

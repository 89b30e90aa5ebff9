"""Runnable examples: ``python -m fastrelu.examples.NAME``."""

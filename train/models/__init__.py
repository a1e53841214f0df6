"""Encoders from other libraries and files, their text towers, and adapters."""

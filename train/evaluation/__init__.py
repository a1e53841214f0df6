"""Evaluations: one file per task."""

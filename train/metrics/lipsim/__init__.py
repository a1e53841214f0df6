"""LipSim, whose distance is certified, and its published weights."""

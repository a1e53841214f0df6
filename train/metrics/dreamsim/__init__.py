"""DreamSim and its published weights."""

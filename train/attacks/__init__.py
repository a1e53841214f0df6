"""Attacks as functions of a loss: APGD, PGD and the Square Attack, and the ball that they stay in."""

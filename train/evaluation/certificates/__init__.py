"""What can be proved about a metric's decisions."""

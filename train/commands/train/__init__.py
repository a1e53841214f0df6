"""`rclip-metric train` and its commands."""

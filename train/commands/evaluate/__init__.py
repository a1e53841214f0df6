"""`rclip-metric eval` and its commands."""

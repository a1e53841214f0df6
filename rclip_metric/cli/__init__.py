"""The command rclip-metric."""

"""The commands that `rclip-metric` hands over: train, eval and benchmark."""

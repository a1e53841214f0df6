"""The tasks of ``rclip-metric train``, one module each: its arguments, and the function that they are handed to."""

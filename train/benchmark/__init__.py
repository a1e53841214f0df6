"""Any metrics on the same data under the same attacks, on one page: ``rclip-metric benchmark``."""

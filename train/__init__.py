"""Training and evaluation of robust encoders; imported as ``rclip_metric.train``."""

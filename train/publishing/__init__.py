"""What is made from a finished run to be shown: the exported model, its card and its results."""

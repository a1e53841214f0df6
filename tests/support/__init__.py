"""What several test files build: `from support.encoders import small_encoder`.

pytest finds the package through `pythonpath` in pyproject.toml, in every worker and however it is started.
"""

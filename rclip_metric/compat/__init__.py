"""The interfaces of other metrics, with a robust one behind them: `compat.lpips`, `compat.dreamsim`, `compat.pyiqa`."""

"""What every long job shares: settings, processes, device, precision, seeds, files, log, states, interruption."""

"""What every floor stands on: errors, the store, configuration, devices, statistics."""

"""What every package stands on: errors, logs, paths, settings, configuration, the model registry. No torch, no network."""

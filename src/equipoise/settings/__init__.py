"""Every key that is ours, for any host: dataclasses with builders, YAML and flags, presets, batch arithmetic."""

"""The steering of one optimizer update, on plain tensors and an all-reduce: no host, no mathematics of its own."""

"""Language models: the statistics head, loading, sampling, evaluation, memory, and small ones made on the spot."""

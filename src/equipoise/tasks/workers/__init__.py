"""Code that reads what a model wrote, and is not ours, in processes of its own with limits and without rights.

`pool` and `process` are the side of the trainer; the others run in a worker, which imports no other part of equipoise.
"""

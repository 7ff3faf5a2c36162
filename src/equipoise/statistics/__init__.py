"""Token statistics: from logits, or from hidden states and an LM head, to log-prob, entropy, tendency, correction."""

from equipoise.statistics.dense import token_statistics
from equipoise.statistics.linear import linear_token_statistics
from equipoise.statistics.vocabulary_parallel import vocabulary_parallel_token_statistics

__all__ = ["linear_token_statistics", "token_statistics", "vocabulary_parallel_token_statistics"]

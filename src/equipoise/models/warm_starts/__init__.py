"""Small models of small tasks, supervised for a while: what reinforcement starts from where there is no network."""

"""A step of a toy takes a second or two: the trainer looks for answers ten times a second, not every two seconds."""

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class EagerBuffer(ReplayBuffer):
    """verl's own buffer; `trainer.v1.sampler.custom_sampler` names it."""

    def __init__(self, **settings):
        super().__init__(**settings, poll_interval=0.1)

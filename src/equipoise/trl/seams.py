"""The small pieces that fit equipoise's trainer into the seams of TRL and transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler


class OutputRecorder:
    """Stands in for the model in a call of TRL's that keeps only part of the model's output."""

    def __init__(self, model):
        self.model = model
        self.outputs: list[dict[str, Tensor]] = []

    def __call__(self, **kwargs):
        """The model's output, kept."""
        output = self.model(**kwargs)
        self.outputs.append(output)
        return output


@contextmanager
def answers(owner: Any, method: str) -> Iterator[list[Any]]:
    """What a method of an object returns within the block, call by call, a subclass's own version included."""
    own, call, returned = vars(owner).get(method), getattr(owner, method), []

    def noted(*args, **kwargs):
        returned.append(call(*args, **kwargs))
        return returned[-1]

    setattr(owner, method, noted)
    try:
        yield returned
    finally:
        if own is None:
            delattr(owner, method)
        else:
            setattr(owner, method, own)


class EpochSampler(Sampler):
    """TRL's sampler with an order that follows from seed and epoch alone, so that a run can resume in any epoch.

    TRL draws each epoch's order from a generator that lives on, which a resumed run starts anew. Epoch 0 is TRL's.
    """

    def __init__(self, sampler: RepeatSampler):
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader, at the start of an epoch and where a run resumes in one."""
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed((self.sampler.seed or 0) + epoch)

    def __iter__(self):
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class UnloggedLoss(TrainerCallback):
    """Gives a resumed run the loss summed since the last log, which transformers sets to zero when training begins."""

    def __init__(self, trainer: Any, loss: float, last_logged_step: int):
        self.trainer, self.loss, self.last_logged_step = trainer, loss, last_logged_step

    def on_train_begin(self, args, state, control, **kwargs):
        """Restore the sum, once."""
        self.trainer._tr_loss += self.loss
        self.trainer._globalstep_last_logged = self.last_logged_step
        self.trainer.remove_callback(self)

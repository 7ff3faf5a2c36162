"""Runs of tiny trainers and what they logged."""

from trainer_setup import trainer


def run(folder, **settings):
    subject = trainer(folder, **settings)
    subject.train()
    return subject, [entry for entry in subject.state.log_history if "loss" in entry]


def own(entry):
    return {k.removeprefix("equipoise/"): v for k, v in entry.items() if k.startswith("equipoise/")}

"""Samples on stdout every N updates: readable, of the rollout batch, and without any effect on training."""

import re

import pytest
import torch
from resume_setup import SETTINGS
from trainer_setup import character_tokenizer, digit_reward, prompts, trainer

from equipoise.trl.printed_samples import NUM_PRINTED, PrintedSamples
from equipoise.trl.resuming import RESUMABLE_CHANGES

pytestmark = pytest.mark.slow


def make(folder, **settings):
    return trainer(folder, **(SETTINGS | {"max_steps": 4, "save_strategy": "no"} | settings), dataset=prompts(16))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = make(tmp_path_factory.mktemp("plain"))
    run.train()
    return run


def test_samples_come_every_so_many_updates_and_change_nothing(tmp_path, plain, capsys):
    run = make(tmp_path, print_samples=2)
    run.train()
    for mine, theirs in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    said = capsys.readouterr().out
    assert re.findall(r"of update (\d+)", said) == ["2", "4"]
    shown = re.findall(r"reward (\S+)\n +prompt +(.*)\n +completion +(.*)", said)
    assert len(shown) == 2 * NUM_PRINTED
    assert len({prompt for _, prompt, _ in shown[:NUM_PRINTED]}) > 1
    for reward, prompt, completion in shown:
        assert re.fullmatch(r"[\d +=]+", prompt)
        assert "eos" not in completion
        text = "" if completion == "(empty)" else completion
        assert float(reward) == pytest.approx(digit_reward([text])[0], rel=1e-2)


def test_nothing_is_printed_unless_asked(plain, tmp_path, capsys):
    make(tmp_path, max_steps=1).train()
    assert "samples of" not in capsys.readouterr().out


def test_a_chat_template_and_what_a_terminal_obeys_are_not_shown():
    tokenizer = character_tokenizer()
    tokenizer.decode = lambda ids, **settings: "".join(map(chr, ids))

    def row(text, length):
        ids = torch.zeros(length, dtype=torch.long)
        ids[: len(text)] = torch.tensor([ord(c) for c in text])
        return ids

    texts = ["<|im_start|>user\nName a bird.<|im_end|>\n<|im_start|>assistant\n", "A \x1b[31mrobin\x07.<|im_end|>"]
    batch = {}
    for name, text in zip(("prompt", "completion"), texts, strict=True):
        ids = torch.stack([row(text, 500), row("x" * 500, 500)])
        batch |= {f"{name}_ids": ids, f"{name}_mask": (ids > 0).int()}
    printed = PrintedSamples(1, tokenizer, 1)
    nan = float("nan")
    printed.observe(batch, torch.tensor([[1.0, nan], [nan, nan]]), torch.tensor([0.5, 1.0]))
    first, second = printed.samples
    assert first == ("Name a bird.", "A �[31mrobin�.", 0.5)
    assert second.reward != second.reward
    assert max(map(len, second[:2])) == 400


def test_the_key_may_change_on_resume_and_must_not_be_negative(tmp_path):
    assert "print_samples" in RESUMABLE_CHANGES
    with pytest.raises(ValueError, match="print_samples must be >= 0"):
        make(tmp_path, print_samples=-1)

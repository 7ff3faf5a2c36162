"""What every warm start shares: a small Llama made on the spot, its supervised training, a folder that is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from equipoise.paths import check_new_folder
from equipoise.progress import progress_bar

MAX_POSITIONS = 64
IGNORED_LABEL = -100  # what the loss of transformers leaves out


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of a warm start, which must be new or empty.

    Raises:
        InputError: when it is neither.
    """
    folder = Path(folder)
    check_new_folder(folder, "the folder of a warm start")
    return folder


def small_model(tokenizer: PreTrainedTokenizerBase, *, max_positions: int = MAX_POSITIONS) -> LlamaForCausalLM:
    """A Llama: transformers loads every Qwen2 folder with a byte-level tokenizer, whatever was saved in it."""
    special_tokens = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=144,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        dtype="float32",
        **special_tokens,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special_tokens)
    return model


def train_supervised(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    examples: torch.utils.data.Dataset,
    staging: Path,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    progress: bool,
) -> None:
    """Train the model on the CPU and write it with its tokenizer: seconds at this size; no GPU changes the weights."""
    arguments = TrainingArguments(
        output_dir=str(staging),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=20,
        adam_beta2=0.99,
        weight_decay=0.01,
        optim="adamw_torch",
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, callbacks=[_ProgressBar(progress)])
    trainer.remove_callback(PrinterCallback)  # it prints the run time to stdout
    trainer.train()
    model.config.use_cache = True  # switched off by the Trainer
    with quiet():
        model.eval().save_pretrained(staging)
    tokenizer.save_pretrained(staging)


class _ProgressBar(TrainerCallback):
    """A bar on stderr that goes away; the one of transformers stays and prints its logs to stdout."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.bar = progress_bar("warm start", state.max_steps, "step", shown=self.shown)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar of transformers, which shows one for writing a single small file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

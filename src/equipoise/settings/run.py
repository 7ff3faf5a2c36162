"""What to train on what: the keys of a run beside the trainer's own."""

from dataclasses import dataclass, field

from equipoise.errors import InputError
from equipoise.settings.presets import PRESETS
from equipoise.tasks.prompts import prompt_template
from equipoise.tasks.registry import check_task_name


@dataclass
class RunSettings:
    """What to train on what, beside the trainer's own settings (`EquipoiseConfig`)."""

    model: str = field(default="", metadata={"help": "Model folder or hub id. Required."})
    task: str | None = field(
        default=None,
        metadata={
            "help": "A task by name, with parameters and weights: 'ladder', 'reasoning_gym:chain_sum?min_terms=2', "
            "'0.7*dapo_math_17k + 0.3*data:mine.jsonl'. Or give a data set."
        },
    )
    eval_task: str | None = field(
        default=None, metadata={"help": "Hold out the prompts of this task instead of the task's own: 'aime_2024'."}
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "'boxed', 'answer_tags' or text with {prompt} in it, around every prompt."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Training data: JSONL, Parquet or CSV file, or hub id, with prompts and answers."},
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Held-out data in the same form."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts: text or chat messages."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the answers."})
    chat: bool = field(default=False, metadata={"help": "Wrap text prompts as one user message (chat template)."})
    reward: str | None = field(
        default=None,
        metadata={
            "help": "'exact', 'math' (math-verify) or 'module:function', and terms that shape: "
            "'math + 0.1*format?style=boxed + overlong?max=2048&buffer=512'. Required with a data set."
        },
    )
    environment: str | None = field(
        default=None,
        metadata={"help": "Episodes with this environment class, 'module:Class', for the prompts of dataset."},
    )
    environment_steps: int = field(default=16, metadata={"help": "Tool calls per episode."})
    environment_seconds: float = field(default=30.0, metadata={"help": "For one step of an environment."})
    max_failed_fraction: float = field(
        default=0.2, metadata={"help": "Stop when more episodes than this fail by their environment."}
    )
    preset: str | None = field(
        default=None,
        metadata={"help": f"Settings that belong together, by name: {', '.join(PRESETS)}. Other keys override it."},
    )
    evaluate_every: int = field(
        default=0, metadata={"help": "Evaluate on the held-out data every so many updates; 0: only at the end."}
    )
    evaluate_samples: int = field(default=16, metadata={"help": "Samples per held-out prompt."})
    evaluate_k: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "The k of pass@k."})
    evaluate_prompts: int | None = field(
        default=None, metadata={"help": "Use only the first so many held-out prompts."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the whole model."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get an adapter; unset: peft's choice for the architecture."}
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("model is required: a model folder or a hub id (--model)")
        if (self.task is None) == (self.dataset is None):
            raise InputError(f"give either task or dataset, got task={self.task!r} and dataset={self.dataset!r}")
        for name in (self.task, self.eval_task):
            if name is not None:
                check_task_name(name)
        if self.eval_task is not None and self.eval_dataset is not None:
            raise InputError("give either eval_task or eval_dataset, not both")
        if self.prompt_template is not None:
            prompt_template(self.prompt_template)
        if self.environment is not None and (self.dataset is None or self.reward is not None):
            raise InputError(
                "environment needs a dataset of prompts and brings its own reward, "
                f"got dataset={self.dataset!r} and reward={self.reward!r}"
            )
        if not 0 < self.max_failed_fraction <= 1:
            raise InputError(f"max_failed_fraction must be in (0, 1], got {self.max_failed_fraction}")
        if self.dataset is not None and self.reward is None and self.environment is None:
            raise InputError("a data set needs a reward: 'exact', 'math' or 'module:function' (--reward)")
        if self.evaluate_prompts is not None and self.evaluate_prompts < 1:
            raise InputError(f"evaluate_prompts must be >= 1, got evaluate_prompts={self.evaluate_prompts}")
        for name in ("evaluate_every", "evaluate_samples"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be >= 0, got {name}={getattr(self, name)}")
        if not self.evaluate_k or any(not 1 <= k <= self.evaluate_samples for k in self.evaluate_k):
            raise InputError(
                f"evaluate_k must be numbers from 1 to evaluate_samples={self.evaluate_samples}, "
                f"got evaluate_k={self.evaluate_k}"
            )

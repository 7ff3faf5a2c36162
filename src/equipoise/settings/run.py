"""What to train on what: the keys of a run beside the trainer's own, flat for the user, in groups for whoever reads."""

from dataclasses import dataclass, field

from equipoise.errors import InputError, require
from equipoise.settings.presets import PRESETS

MOST_SAMPLES = 2**20

# Names of tasks are checked by the tasks themselves, which load the libraries of data: not to be paid for a `--help`.


@dataclass
class ModelSettings:
    """Model and preset."""

    model: str = field(default="", metadata={"help": "Model folder or hub id. Required."})
    preset: str | None = field(
        default=None,
        metadata={"help": f"Settings that belong together, by name: {', '.join(PRESETS)}. Other keys override it."},
    )

    def _check_model(self) -> None:
        if not self.model:
            raise InputError("model is required: a model folder or a hub id (--model)")


@dataclass
class DataSettings:
    """Prompts and reward."""

    task: str | None = field(
        default=None,
        metadata={
            "help": "A task by name, with parameters and weights: 'ladder', 'reasoning_gym:chain_sum?min_terms=2', "
            "'0.7*dapo_math_17k + 0.3*data:mine.jsonl?answer_column=solution'. --dataset FILE is short for data:FILE "
            "(JSONL, Parquet, CSV or a hub id, with prompts and answers). Required."
        },
    )
    eval_task: str | None = field(
        default=None,
        metadata={
            "help": "Hold out the prompts of this task instead of the task's own: 'aime_2024', 'data:test.jsonl'. "
            "--eval_dataset FILE is short for data:FILE."
        },
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "'boxed', 'answer_tags' or text with {prompt} in it, around every prompt."}
    )
    chat: bool = field(default=False, metadata={"help": "Wrap text prompts as one user message (chat template)."})
    reward: str | None = field(
        default=None,
        metadata={
            "help": "'exact', 'math' (math-verify) or 'module:function', and terms that shape: "
            "'math + 0.1*format?style=boxed + overlong?max=2048&buffer=512'. Unset: the task's own, 'math' for data."
        },
    )

    def _check_data(self) -> None:
        from equipoise.tasks.prompts import prompt_template
        from equipoise.tasks.registry import check_task_name

        if self.task is None:
            raise InputError("task is required: a task by name (--task), or data (--dataset FILE)")
        for name in (self.task, self.eval_task):
            if name is not None:
                check_task_name(name)
        if self.prompt_template is not None:
            prompt_template(self.prompt_template)


@dataclass
class EnvironmentSettings:
    """Episodes in an environment."""

    environment: str | None = field(
        default=None,
        metadata={"help": "Episodes with this environment class, 'module:Class', for the prompts of data:FILE."},
    )
    environment_steps: int = field(default=16, metadata={"help": "Tool calls per episode."})
    environment_seconds: float = field(default=30.0, metadata={"help": "For one step of an environment."})
    max_failed_fraction: float = field(
        default=0.2, metadata={"help": "Stop when more episodes than this fail by their environment."}
    )

    def _check_environment(self, task: str, reward: str | None) -> None:
        from equipoise.tasks.registry import is_own_data

        if self.environment is not None and (not is_own_data(task) or reward is not None):
            raise InputError(
                "environment needs a data set of prompts (dataset: FILE) and brings its own reward, "
                f"got task={task!r} and reward={reward!r}"
            )
        steps, seconds = self.environment_steps, self.environment_seconds
        require("environment_steps", steps, ">= 1", steps >= 1, error=InputError)
        require("environment_seconds", seconds, "> 0 and <= 1e6", 0 < seconds <= 1e6, error=InputError)
        fraction = self.max_failed_fraction
        require("max_failed_fraction", fraction, "in (0, 1]", 0 < fraction <= 1, error=InputError)


@dataclass
class EvaluationSettings:
    """Evaluation on held-out data."""

    evaluate_every: int = field(
        default=0, metadata={"help": "Evaluate on the held-out data every N updates; 0: only at the end."}
    )
    evaluate_samples: int = field(default=16, metadata={"help": "Samples per held-out prompt."})
    evaluate_temperature: float | None = field(
        default=None, metadata={"help": "Of these samples; unset: the temperature of training."}
    )
    evaluate_k: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "The k of pass@k."})
    evaluate_prompts: int | None = field(default=None, metadata={"help": "Use only the first N held-out prompts."})

    def _check_evaluation(self) -> None:
        prompts = self.evaluate_prompts
        require("evaluate_prompts", prompts, ">= 1", prompts is None or prompts >= 1, error=InputError)
        temperature = self.evaluate_temperature
        fits = temperature is None or 1e-6 <= temperature <= 1e6
        require("evaluate_temperature", temperature, ">= 1e-6 and <= 1e6", fits, error=InputError)
        for name, (least, most) in {"evaluate_every": (0, 2**31), "evaluate_samples": (1, MOST_SAMPLES)}.items():
            value = getattr(self, name)
            require(name, value, f">= {least} and <= {most}", least <= value <= most, error=InputError)
        if not self.evaluate_k or any(not 1 <= k <= self.evaluate_samples for k in self.evaluate_k):
            raise InputError(
                f"evaluate_k must be numbers from 1 to evaluate_samples={self.evaluate_samples}, "
                f"got evaluate_k={self.evaluate_k}"
            )


@dataclass
class AdapterSettings:
    """LoRA adapter."""

    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the whole model."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get an adapter; unset: peft's choice for the architecture."}
    )

    def _check_adapter(self) -> None:
        for name in ("lora_r", "lora_alpha"):
            value = getattr(self, name)
            require(name, value, ">= 1 and <= 65536", 1 <= value <= 65536, error=InputError)
        require("lora_dropout", self.lora_dropout, "in [0, 1)", 0 <= self.lora_dropout < 1, error=InputError)
        if self.lora_target_modules is not None and not all(self.lora_target_modules or [""]):
            raise InputError(f"lora_target_modules must name modules, got {self.lora_target_modules}")


GROUPS: tuple[type, ...] = (ModelSettings, DataSettings, EnvironmentSettings, EvaluationSettings, AdapterSettings)
"""The groups of `RunSettings` in the order of `--help`; the docstring of each is its title."""


@dataclass
class RunSettings(AdapterSettings, EvaluationSettings, EnvironmentSettings, DataSettings, ModelSettings):
    """What to train on what, beside the trainer's own settings (`EquipoiseConfig`); all keys are optional but two.

    Raises:
        InputError: a value that is missing or out of range, a task that is not known, or keys that exclude each other.
    """

    def __post_init__(self) -> None:
        self._check_model()
        self._check_data()
        self._check_environment(str(self.task), self.reward)
        self._check_evaluation()
        self._check_adapter()

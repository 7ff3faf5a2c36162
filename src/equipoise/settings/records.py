"""The keys of what is recorded for looking at it."""

from dataclasses import dataclass, field

from equipoise.errors import require


@dataclass
class RecordSettings:
    """Token records and figures."""

    record_tokens: int = field(
        default=0,
        metadata={
            "help": "Record every token of every n-th update, the first included, in RUN/tokens: Parquet, for "
            "`equipoise report`, pandas, polars, DuckDB. 0: off. 10 costs the training thread under a hundredth."
        },
    )
    record_tokens_fraction: float = field(
        default=1.0, metadata={"help": "Share of the samples that are recorded, whole, in (0, 1]."}
    )
    print_samples: int = field(
        default=0,
        metadata={
            "help": "Print a few samples (prompt, completion, reward, shortened) on stdout every N updates; 0: never."
        },
    )
    asymmetry_map_every: int = field(
        default=0,
        metadata={
            "help": "Send a figure of the asymmetry map (probability, entropy and polarity of a sample of tokens) to "
            "TensorBoard or wandb every N updates; 0: never."
        },
    )

    def check_records(self, trackers: list[str]) -> None:
        """Refuse values out of range, and a figure that no tracker takes.

        Args:
            trackers: names of those in use.

        Raises:
            ValueError: naming the key, the rule and the value.
        """
        for name in ("record_tokens", "print_samples", "asymmetry_map_every"):
            require(name, getattr(self, name), ">= 0", getattr(self, name) >= 0)
        fraction = self.record_tokens_fraction
        require("record_tokens_fraction", fraction, "in (0, 1]", 0 < fraction <= 1)
        if self.asymmetry_map_every and not {"tensorboard", "wandb"} & set(trackers):
            raise ValueError(
                f"asymmetry_map_every={self.asymmetry_map_every} needs a tracker that takes figures: report_to must "
                f"name tensorboard or wandb, got report_to={trackers!r}"
            )

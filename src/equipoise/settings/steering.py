"""All keys that steer an update, whatever the host."""

from dataclasses import dataclass

from equipoise.settings.batches import RolloutBatch
from equipoise.settings.clipping import ClippingSettings
from equipoise.settings.entropy_control import EntropyControlSettings
from equipoise.settings.polarity import PolaritySettings


@dataclass
class SteeringSettings(EntropyControlSettings, PolaritySettings, ClippingSettings):
    """Clipping, polarity and the baselines: what steering takes. The settings of an adapter extend it."""

    def check_steering(self, batch: RolloutBatch) -> None:
        """Refuse values out of range and settings that exclude each other.

        Raises:
            ValueError: naming the key, the rule and the value.
        """
        self.check_clipping()
        self.check_polarity()
        self.check_entropy_control()
        self.check_combinations(polarity=self.polarity, clipping=self.clipping, batch=batch)

"""How weights begin. Norm scales begin at 1, biases, gates' constants and learned sinks at 0."""

from typing import Annotated, Literal

from pydantic import PositiveFloat

from spikesink.zoo.choice import BY_NAME, KIND, Choice


class Normal(Choice):
    """Every matrix, embedding and virtual key from N(0, std^2), as in Llama."""

    kind: Literal["normal"] = "normal"
    std: PositiveFloat = 0.02

    def matrix_std(self, fan_in: int, *, writes: bool, n_layers: int) -> float:
        return self.std


class Scaled(Choice):
    """As normal, but matrices that write to the residual stream with std / sqrt(2 n_layers), as in GPT-2."""

    kind: Literal["scaled"] = "scaled"
    std: PositiveFloat = 0.02

    def matrix_std(self, fan_in: int, *, writes: bool, n_layers: int) -> float:
        return self.std / (2 * n_layers) ** 0.5 if writes else self.std


class FanIn(Choice):
    """Matrices from N(0, gain^2 / fan_in); embeddings and virtual keys from N(0, std^2)."""

    kind: Literal["fan_in"] = "fan_in"
    gain: PositiveFloat = 1.0
    std: PositiveFloat = 0.02

    def matrix_std(self, fan_in: int, *, writes: bool, n_layers: int) -> float:
        return self.gain / fan_in**0.5


Initialisation = Annotated[Normal | Scaled | FanIn, KIND, BY_NAME]

"""A position of your own."""

import numpy as np
import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Position, Term
from llmlab.twins import Given, twin


@register("position", "my_position")
class MyPosition(Position):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pair (i, i + R/2) turns by position theta^(-2i/R).

    R is the width of a head that the attention part has rotated. Hooks of llmlab.slots.Position that are left out do
    nothing: `ids`, `embed` (vectors added to the embedding) and `bias` (added to the scores; set has_bias = True).
    """

    telling = ({"theta": 100.0},)

    def __init__(self, sizes: Sizes, /, *, theta: float = 10000.0):  # base of the wavelengths
        super().__init__()
        if sizes.rotary_dim % 2 or theta <= 0:
            raise ValueError(
                f"position.theta={theta} must be more than 0, and a head's {sizes.rotary_dim} dims be even"
            )
        self.width, self.theta = sizes.rotary_dim, theta

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Once a forward: cos and sin of the new tokens' angles, (T, R/2) or (B, 1, T, R/2), float32."""
        # float32: bfloat16 has no 257, and neighbouring positions would have one angle.
        pairs = torch.arange(0, self.width, 2, device=q_ids.device).float()
        angles = q_ids[..., None].float() * self.theta ** (-pairs / self.width)
        if q_ids.dim() == 2:
            # A dimension for the heads.
            angles = angles[:, None]
        return angles.cos(), angles.sin()

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: tuple[Tensor, Tensor]) -> list[Term]:
        return [Term(turned(q_BNTH, *state), turned(k_BKSH, *state))]


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Halves, GPT-NeoX's and LLaMA's layout in transformers; GPT-J, GLM and DeepSeek turn neighbours.
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.position.
@twin("position", "my_position", source="Su et al. 2021, section 3.2.2")
def definition(given: Given) -> dict[str, np.ndarray]:
    width = given.sizes.rotary_dim
    frequencies = given.options["theta"] ** (-np.arange(0, width, 2) / width)

    def rotated(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """A pair is a complex number, which is turned by a product."""
        still, a, b = np.split(x, [x.shape[-1] - width, x.shape[-1] - width // 2], -1)
        z = (a + 1j * b) * np.exp(1j * ids[:, None, :, None] * frequencies)
        return np.concatenate([still, z.real, z.imag], -1)

    def scores(text: str, ids: np.ndarray) -> np.ndarray:
        q, k = (rotated(given.inputs[key][:, :, : ids.shape[1]], ids) for key in "qk")
        k = np.repeat(k, q.shape[1] // k.shape[1], 1)
        return given.inputs["scale"] * (q @ k.swapaxes(2, 3)) * given.inputs[f"{text}.seen"][:, None]

    whole = np.arange(given.inputs["whole.ids"].shape[1])[None]
    return {"whole.scores": scores("whole", whole), "placed.scores": scores("placed", given.inputs["placed.positions"])}

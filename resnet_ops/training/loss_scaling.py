"""Loss scaling (Micikevicius et al. 2018), without which small gradients are zero in fp16."""

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-20  # begins at 2^16: gradients that overflow even there are not those of fp16 alone


class LossScaler:
    """torch's `GradScaler`, and a count of the steps that it skipped: captured in a CUDA graph like the rest of a step.

    Args:
        device: That of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self.grad_scaler = torch.amp.GradScaler(device.type)
        self.one = torch.ones((), device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)  # steps of the current epoch

    @property
    def scale(self) -> float:
        """The factor of the next loss."""
        return self.grad_scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss that gradients are computed of."""
        return self.grad_scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients, added up over micro-batches and workers, by the scale."""
        self.grad_scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights, unless a gradient is not finite; then the scale is halved."""
        before = self.scaled(self.one)
        self.grad_scaler.step(optimizer)
        self.grad_scaler.update()
        self.skipped += self.scaled(self.one) < before  # not asked of the scaler, which would wait for the GPU

    def state(self) -> dict[str, Tensor]:
        """Return all that is needed to go on."""
        values = self.grad_scaler.state_dict()
        return {
            "scale": torch.tensor(values["scale"], dtype=torch.float64),
            "growth_tracker": torch.tensor(values["_growth_tracker"], dtype=torch.int64),
            "skipped": self.skipped,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        own = {"scale": state["scale"].item(), "_growth_tracker": int(state["growth_tracker"])}
        self.grad_scaler.load_state_dict(self.grad_scaler.state_dict() | own)
        self.skipped.copy_(state["skipped"])

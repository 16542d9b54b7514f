"""The workers' agreement to stop after the same step, whichever of them was asked to."""

import time
from collections.abc import Callable

from resnet_ops.stop_request import StopRequest
from resnet_ops.training.distributed import ProcessGroup

INTERVAL_S = 1.0
MOST_STEPS = 100  # between two agreements: steps may become slower


class StopAgreement:
    """Decides, the same on every worker, whether training stops.

    A worker alone looks at its own request after each step. Several compare theirs about once a second: at each step,
    that would cost each step.
    """

    def __init__(self, group: ProcessGroup, request: StopRequest, clock: Callable[[], float] = time.monotonic) -> None:
        self.group, self.request, self.clock = group, request, clock
        self.agreed = False
        self._done, self._until, self._since = 0, 1, clock()

    def after_step(self) -> bool:
        """Return whether to stop now; to be called by every worker after the same steps."""
        if self.group.size == 1:
            return self.settle()
        self._done += 1
        return self._done >= self._until and self.settle()

    def settle(self) -> bool:
        """Compare the requests of all workers, and return whether to stop; to be called by every worker."""
        if self.group.size == 1:
            self.agreed = self.request.requested
            return self.agreed
        step_s = (self.clock() - self._since) / max(self._done, 1)
        requested, step_s = self.group.largest(float(self.request.requested), step_s)
        self._done, self._until = 0, max(1, min(round(INTERVAL_S / max(step_s, 1e-9)), MOST_STEPS))
        self._since = self.clock()
        self.agreed = requested > 0
        return self.agreed

"""Turn Ctrl-C, SIGTERM and SIGUSR1 into a request to stop after the current batch.

SLURM sends SIGUSR1 some time before it ends a job (`sbatch --signal`), to all processes of the job.
"""

import os
import signal
from types import FrameType, TracebackType

PREEMPTION = getattr(signal, "SIGUSR1", None)  # Windows has none
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if PREEMPTION is not None:
    EXIT_CODES[PREEMPTION] = 138


class Interrupt:
    """A context that records the first of these signals instead of ending the process.

    A second signal has its usual effect. Worker processes that are forked inside the context ignore
    SIGINT, which a terminal also sends to them, and SIGUSR1, but SIGTERM ends them.

    Attributes:
        signal: The recorded signal, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._owner = os.getpid()
        self._previous: dict[signal.Signals, object] = {}

    @property
    def is_preemption(self) -> bool:
        """Whether the recorded signal is SIGUSR1: the job should go on later."""
        return self.signal is not None and self.signal == PREEMPTION

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.signal(number, self._record) for number in EXIT_CODES}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        self.signal = signal.Signals(number)
        self._restore()

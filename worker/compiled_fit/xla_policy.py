"""When a fit is trained in XLA, and how many epochs at once: decided from figures alone."""

from __future__ import annotations

from dataclasses import dataclass

from gridfleet.storage.fit_mode import FitMode

#: Seconds that XLA takes for a program, roughly, for each operation of a step: 0.9 to 1.5 s for the 380 of two or three
#: Dense layers with Adam, on one thread of a slow core.
COMPILE_S_PER_OPERATION = 0.0025
#: Seconds that XLA spares in a step, at most, for each of its operations: their overhead. Those steps took 0.16 to 0.21
#: ms, and 0.03 in XLA.
SPARED_S_PER_OPERATION = 0.35e-6
#: The part of a step's overhead that XLA spares.
SPARED_OF_OVERHEAD = 0.75
#: Seconds of a step's arithmetic, of which XLA spares none, for each number of the variables times rows of a batch: the
#: digits' 550,000 took 0.11 ms.
ARITHMETIC_S = 0.2e-9
#: Steps of a trial that repay XLA's compilation several times over where the model is small, so that ``auto`` need not
#: try the graph first: that took a fifth of a search of three fits of 5,200 steps, of which XLA spares 0.1 ms each.
SURE_STEPS = 12_000
#: Numbers in the variables of a small model times rows of a batch; the time of larger ones is arithmetic, of which XLA
#: spares none: 17,000 numbers and 32 rows took as long in XLA, 121 numbers and 10 rows a quarter.
MAX_MULTIPLICATIONS_OF_SURE = 200_000
#: Seconds after which a run of epochs returns to Python, so that a trial can be stopped.
RETURN_S = 1.0
#: Epochs of a fit's second run at most, while the speed is not known.
MAX_EPOCHS_OF_UNKNOWN_SPEED = 8


def repays(n_steps: int, step_s: float, n_operations: int, n_multiplications: int) -> bool:
    """Whether the steps still to come repay the compilation.

    Parameters
    ----------
    n_steps : int
        Steps to come for programs of this structure, those that came already included (who rents skis buys
        them once the rent paid is their price).
    step_s : float
        Seconds that one takes without XLA.
    n_operations : int
        Operations of a step's graph.
    n_multiplications : int
        Numbers in the variables that are trained, times rows of a batch.
    """
    overhead_s = max(step_s - ARITHMETIC_S * n_multiplications, 0.0)
    spared_s = min(overhead_s * SPARED_OF_OVERHEAD, SPARED_S_PER_OPERATION * n_operations)
    return n_steps * spared_s > COMPILE_S_PER_OPERATION * n_operations


def surely_repays(n_steps: int, n_multiplications: int, *, is_recurrent: bool) -> bool:
    """Whether XLA's compilation is repaid by what is to come, whatever a step takes.

    Parameters
    ----------
    n_steps : int
        Steps of the trial that nothing can cut short.
    n_multiplications : int
        Numbers in the variables that are trained, times rows of a batch.
    is_recurrent : bool
        Whether the model has loops of its own, which take XLA seconds to compile.
    """
    return n_steps >= SURE_STEPS and n_multiplications <= MAX_MULTIPLICATIONS_OF_SURE and not is_recurrent


def is_faster_in_xla(*, graph_step_s: float | None, xla_step_s: float | None) -> bool:
    """Whether a compiled program is to be preferred: yes, until both have been measured."""
    return graph_step_s is None or xla_step_s is None or xla_step_s < graph_step_s


def epochs_until_return(step_s: float, steps_per_epoch: int) -> int:
    """Return how many epochs last `RETURN_S`; at least one."""
    return max(1, int(RETURN_S / (step_s * steps_per_epoch)))


@dataclass(frozen=True)
class XlaPolicy:
    """What a fit does next, from what is known of it.

    Parameters
    ----------
    mode : FitMode
        What was asked for.
    obstacle : str or None
        Why XLA can't compile the step to something with the same result, or is slow at it; None: nothing is known
        against it.
    has_checked_indices : bool
        Whether the graph has looked up all the rows' indices, of which XLA does not say that they are out of range.
    watches_for_nan : bool
        Whether an epoch ends at the first batch whose loss is not finite, which XLA's loop does not look at.
    keras_uses_xla : bool
        Whether Keras compiles each step by itself (``jit_compile``).
    has_full_batch : bool
        Whether there is a batch for XLA's loop: the shorter last one runs in the graph.
    is_compiled : bool
        Whether XLA has compiled the program for this shape.
    n_operations : int
        Operations of a step's graph.
    n_multiplications : int
        Numbers in the variables that are trained, times rows of a batch.
    steps_per_epoch : int
        Batches of an epoch.
    n_graph_steps : int
        Batches that the program trained outside XLA so far, in all fits.
    graph_step_s, xla_step_s : float or None
        Seconds that a batch last took, outside XLA and in it; None: not measured.
    starts_in_xla : bool, default=False
        Whether it was sure beforehand that XLA repays.
    """

    mode: FitMode
    obstacle: str | None
    has_checked_indices: bool
    watches_for_nan: bool
    keras_uses_xla: bool
    has_full_batch: bool
    is_compiled: bool
    n_operations: int
    n_multiplications: int
    steps_per_epoch: int
    n_graph_steps: int
    graph_step_s: float | None
    xla_step_s: float | None
    starts_in_xla: bool = False

    @property
    def may_use_xla(self) -> bool:
        """Whether XLA gives the same result, and was not ruled out."""
        return self.may_come_to_use_xla and self.has_checked_indices

    @property
    def may_come_to_use_xla(self) -> bool:
        """Whether it may be so in a later run."""
        return (
            self.mode in (FitMode.XLA, FitMode.AUTO)
            and self.obstacle is None
            and not self.watches_for_nan
            and not self.keras_uses_xla
            and self.has_full_batch
        )

    @property
    def is_slower_in_xla(self) -> bool:
        """Whether both were measured, and the graph was the faster one."""
        return not is_faster_in_xla(graph_step_s=self.graph_step_s, xla_step_s=self.xla_step_s)

    def uses_xla(self, n_epochs_to_come: int) -> bool:
        """Whether the next run is XLA's.

        Parameters
        ----------
        n_epochs_to_come : int
            Epochs of the next run, of the rest of this fit and of the fits that follow.
        """
        if not self.may_use_xla:
            return False
        if self.is_compiled:
            return not self.is_slower_in_xla
        if self.mode is FitMode.XLA or self.starts_in_xla:
            return True
        if self.graph_step_s is None:
            return False
        n_steps = self.n_graph_steps + n_epochs_to_come * self.steps_per_epoch
        return repays(n_steps, self.graph_step_s, self.n_operations, self.n_multiplications)

    def epochs_of_next_run(self, n_epochs: int, *, is_first: bool) -> int:
        """Return how many epochs the next run should do before it returns to Python.

        Parameters
        ----------
        n_epochs : int
            Epochs that the fit has still to do.
        is_first : bool
            Whether the fit has run none yet.
        """
        if self.mode is not FitMode.EXACT and not self.has_checked_indices:
            return 1
        uses_xla = self.may_use_xla and self.is_compiled and not self.is_slower_in_xla
        step_s = self.xla_step_s if uses_xla else self.graph_step_s
        if step_s is None:
            return 1 if is_first else min(n_epochs, MAX_EPOCHS_OF_UNKNOWN_SPEED)
        return min(n_epochs, epochs_until_return(step_s, self.steps_per_epoch))

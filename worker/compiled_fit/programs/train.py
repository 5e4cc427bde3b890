"""Keras' ``fit`` as a program: epochs of training and validation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.errors import KerasTakesOverError, preparing_a_program
from gridfleet.worker.compiled_fit.patches.random_numbers import TRACED_OTHERWISE_FOR_XLA, same_random_numbers
from gridfleet.worker.compiled_fit.programs.epoch_loop import EpochLoop, TrainingPass
from gridfleet.worker.compiled_fit.programs.function import Program, SharedFunction
from gridfleet.worker.compiled_fit.programs.graph_loop import GraphLoop
from gridfleet.worker.compiled_fit.programs.inputs import EpochInputs
from gridfleet.worker.compiled_fit.programs.joint_update import JointState, may_update_at_once
from gridfleet.worker.compiled_fit.programs.operations import (
    adds_constant_to_sum,
    checks_indices,
    has_swish,
    may_fail,
    may_fail_later,
    operations_of,
)
from gridfleet.worker.compiled_fit.programs.step import Step, trace_reset
from gridfleet.worker.compiled_fit.programs.stream_loop import StreamLoop
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.programs.xla_loop import XlaLoop
from gridfleet.worker.compiled_fit.types import Model, Results, Tensor

#: A traced loop over epochs.
Loop: TypeAlias = SharedFunction[EpochInputs]


class LoopOptions(NamedTuple):
    """Which of a program's loops is meant.

    Parameters
    ----------
    watches_for_nan : bool
        Whether an epoch ends at the first batch after which the loss is not finite.
    xla_batch_size : int or None
        Rows of the batches that XLA is to loop over; None: no XLA.
    is_one_epoch : bool, default=False
        Whether a run is one epoch, and none of more is known to come: that loop takes half as long to trace.
    """

    watches_for_nan: bool
    xla_batch_size: int | None
    is_one_epoch: bool = False


class TrainProgram(Program):
    """Epochs of training and validation of one model, and of all others of its structure.

    Parameters
    ----------
    model : keras.Model
        Compiled; variables that it does not have yet, the steps build as they are traced, as in Keras.
    train : Batches or Stream
        What it is trained on; only types and structure count.
    validation : Batches or None
        What it is validated on after an epoch.
    for_xla : bool
        Whether the steps are to be traced so that XLA draws the same random numbers.
    fixes_size : bool, default=False
        Whether XLA's steps are to know the size of batches where Keras' do.
    is_known : bool, default=False
        Whether the model's metrics are Keras' own, and determined without looking at what their reset does.

    Attributes
    ----------
    layout : ResultLayout
        Of the training's results.
    validation_layout : ResultLayout or None
        Of those of the validation, which follow them.
    xla_obstacle : str or None
        Why XLA does not compile the steps; None as long as nothing is known against it.
    xla_wants_fixed_batches : bool
        Whether XLA needs the step traced for batches of a fixed size: recurrent layers do, others by trying.
    checks_indices : bool
        Whether a step fails at an index out of range, where XLA would go on.
    may_fail : bool
        Whether a step may fail for the values that it is given.
    n_operations : int
        Operations of a training step's graph.
    """

    def __init__(
        self,
        model: Model,
        train: Batches | Stream,
        validation: Batches | None,
        *,
        for_xla: bool,
        fixes_size: bool = False,
        is_known: bool = False,
    ) -> None:
        knows_size = fixes_size or not for_xla
        with same_random_numbers() if for_xla else nullcontext():
            size = _step_size(train, knows_size=knows_size)
            self._train_step = Step(model, model.train_step, train, batch_size=size, for_xla=for_xla)
            self._joint_step: Step | None = None
            self._joint_variables: VariableSet | None = None
            self._test_step = None
            if validation is not None:
                size = _step_size(validation, knows_size=knows_size)
                self._test_step = Step(model, model.test_step, validation, batch_size=size)
        steps = [self._train_step] if self._test_step is None else [self._train_step, self._test_step]
        self.layout = self._train_step.layout
        self.validation_layout = None if self._test_step is None else self._test_step.layout
        super().__init__(
            [*([] if is_known else [trace_reset(model)]), *(step.traced for step in steps)],
            VariableSet.of_training(model),  # only now, for the steps build those that are missing
            (self.layout, self.validation_layout),
        )
        self._train = train.without_rows()  # the program outlives the data
        self._validation = None if validation is None else validation.without_rows()
        self._loops: dict[tuple[LoopOptions, bool, bool], Loop] = {}
        self._is_known = is_known
        self._look_at_operations(for_xla=for_xla)
        self.may_fail = any(may_fail(step.traced) for step in steps)
        # what fails between two steps would leave the optimizer as it was before the run; a first run is undone
        fails_later = any(may_fail_later(step.traced) for step in steps)
        self._tries_joint_step = not for_xla and not isinstance(train, Stream) and not fails_later

    def _look_at_operations(self, *, for_xla: bool) -> None:
        traced = self._train_step.traced
        operations = operations_of(traced)
        self.xla_wants_fixed_batches = any("While" in name for name in operations)
        # where it is not traced for XLA yet, uniform numbers are those of TensorFlow's kernels still
        self.xla_obstacle = self._train_step.xla_obstacle(() if for_xla else TRACED_OTHERWISE_FOR_XLA)
        self.checks_indices = checks_indices(traced)
        self.n_operations = len(traced.graph.get_operations())

    def update_at_once(self, model: Model, n_steps: int) -> None:
        """Trace the training step once more, with one update of all variables, where that gives the same and repays.

        Parameters
        ----------
        model : keras.Model
            As the program's structure says, now.
        n_steps : int
            Steps that are to come, and those that came.
        """
        if not self._tries_joint_step or not may_update_at_once(model, n_steps):
            return
        self._tries_joint_step = False
        joint = JointState(model)
        try:
            with preparing_a_program(), joint.replacing(model.optimizer):
                size = self._train_step.batch_size
                step = Step(model, model.train_step, self._train, batch_size=size, is_apart=True)
        except KerasTakesOverError:
            return
        # such a step is rounded as Keras' own only in that one
        if joint.n_updates == 1 and not (has_swish(step.traced) or adds_constant_to_sum(step.traced)):
            self._joint_step, self._joint_variables = step, VariableSet.of_training(model, joint)

    @property
    def updates_at_once(self) -> bool:
        """Whether models that are found for it from now on are trained with one update of all variables."""
        return self._joint_step is not None

    def variables_of(self, model: Model) -> VariableSet:
        """Return what the program runs on for a model of its structure."""
        return VariableSet.of_training(model, JointState(model) if self.updates_at_once else None)

    def loop(self, model: Model, variables: VariableSet, options: LoopOptions) -> Loop:
        """Return a loop, traced unless it was before.

        Parameters
        ----------
        model : keras.Model
            Of the program's structure; it is not kept.
        variables : VariableSet
            Its variables.
        options : LoopOptions
            Which loop.

        Returns
        -------
        SharedFunction
            For `run`.
        """
        kind = self.xla_wants_fixed_batches, variables.joint is not None
        of_any_epochs = options._replace(is_one_epoch=False), *kind
        if of_any_epochs in self._loops:
            return self._loops[of_any_epochs]
        key = options, *kind
        if key not in self._loops:
            self._loops[key] = self._trace(model, variables, options)
        return self._loops[key]

    def run(self, loop: Loop, variables: VariableSet, inputs: EpochInputs) -> tuple[Results, int]:
        """Train a model for some epochs; its metrics were reset before the first one.

        Parameters
        ----------
        loop : SharedFunction
            From `loop`.
        variables : VariableSet
            Of a model of the same structure as the one that the program was traced with.
        inputs : EpochInputs
            The data.

        Returns
        -------
        results : ndarray of shape (n_epochs, n_results)
            The metrics, then those of the validation (zeros where there was none).
        n_steps : int
            Batches of the last epoch; fewer than there are if it was ended by a loss that is not finite.
        """
        results, n_steps = loop(inputs, variables)
        return results.numpy(), int(n_steps)

    def _trace(self, model: Model, variables: VariableSet, options: LoopOptions) -> Loop:
        joint = variables.joint
        if joint is not None and self._joint_step is not None and self._joint_variables is not None:
            train = self._joint_step.on(variables, traced_with=self._joint_variables)
        else:
            train = self._train_step.on(variables, traced_with=self._variables)
        test = None if self._test_step is None else self._test_step.on(variables, traced_with=self._variables)
        epoch = self._training_pass(model, train, options)
        loop = EpochLoop(model, train, test, epoch, is_one=options.is_one_epoch)
        return SharedFunction(
            loop.run if joint is None else joint.around(loop.run),
            EpochInputs.specs(self._train, self._validation),
            variables,
            # validation stays in the graph, and may be much
            uses_grappler=options.xla_batch_size is None or test is not None,
            is_checked=self._is_known,  # the steps were
        )

    def _training_pass(self, model: Model, step: Step, options: LoopOptions) -> TrainingPass:
        if options.xla_batch_size is not None:
            full_step = self._step_for_xla(model, step, options.xla_batch_size)
            return XlaLoop(step, full_step, options.xla_batch_size)
        kind: Any = StreamLoop if isinstance(self._train, Stream) else GraphLoop
        loop: Callable[..., tuple[Tensor, Tensor]] = kind(model, step, watches_for_nan=options.watches_for_nan)
        return lambda inputs, order: loop(inputs.train, order)

    def _step_for_xla(self, model: Model, step: Step, batch_size: int) -> Step:
        if not self.xla_wants_fixed_batches:
            return step
        with same_random_numbers():
            return Step(model, model.train_step, self._train, batch_size=batch_size, for_xla=True)


def _step_size(data: Batches | Stream, *, knows_size: bool) -> int | None:
    # XLA takes splits whose sizes differ by one in one program
    return data.fixed_batch_size if knows_size else None

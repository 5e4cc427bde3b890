"""The ways in which one try of one worker at one trial can end: what ``attempts.outcome`` says."""

from __future__ import annotations

import enum


class Outcome(enum.StrEnum):
    """What an attempt came to. A new member needs a migration: the table of attempts takes no others."""

    #: All splits were scored; the scores are recorded.
    COMPLETED = "completed"
    #: The model's own code raised, or its mean score is not a number; the trial is not tried again.
    FAILED = "failed"
    #: Stopped early, for other trials did better; the scores that were reached are recorded.
    PRUNED = "pruned"
    #: Ended because its search was cancelled, or stopped at its time limit.
    CANCELLED = "cancelled"
    #: Handed back unharmed by a worker that was asked to end, as at a deploy, or lost with other trials; no failure.
    RELEASED = "released"
    #: Took longer than the search's ``trial_timeout`` or the fleet's ``GRIDFLEET_MAX_RUNTIME_S``.
    TIMEOUT = "timeout"
    #: The worker did not prolong its lease: it died, hung, or could not reach the database.
    LEASE_EXPIRED = "lease_expired"
    #: The worker's main process saw the process die, or killed it because it gave no sign of life.
    WORKER_LOST = "worker_lost"
    #: The data or the model wanted more memory than a worker process gets.
    OUT_OF_MEMORY = "out_of_memory"
    #: Estimator or data are not what was submitted: damaged, or signed with another key.
    PAYLOAD_ERROR = "payload_error"
    #: The worker itself failed, not the model: what releases before 0011 said of `HANDED_BACK`.
    WORKER_ERROR = "worker_error"
    #: Handed back by a worker that could not evaluate it: a full disk, a package that is missing there, a defect of
    #: gridfleet. Counts against the worker, not the trial.
    HANDED_BACK = "handed_back"


#: Outcomes of attempts that wrote a result.
RESULTS = (Outcome.COMPLETED, Outcome.FAILED, Outcome.PRUNED)

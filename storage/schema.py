"""The tables, as SQLAlchemy 2 declarative classes. The views are in the migrations, per search in search_views.py."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gridfleet.storage.database.times import UtcDateTime, now
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.outcome import Outcome

#: The newest migration; a database of another revision is migrated or refused (storage/migrations).
SCHEMA_REVISION = "0026"

#: The views that migrations make; each search has one besides (search_views.py).
VIEWS = ("best_trials", "epochs", "leaderboard", "search_progress")

#: SQLite counts rows only in a column that is exactly INTEGER.
Id = BigInteger().with_variant(Integer(), "sqlite")
Json = JSON().with_variant(JSONB(), "postgresql")
JsonOrNull = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
#: Floats in their order; SQLite has no arrays.
Floats = JSON().with_variant(ARRAY(Double), "postgresql")

#: The largest finite double: PostgreSQL would store NaN and Infinity and sort them above all scores.
FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"


class SearchState(enum.StrEnum):
    """The states of a search."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class TrialState(enum.StrEnum):
    """The states of a trial; docs/design.md draws the ways between them."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    PRUNED = "pruned"
    CANCELLED = "cancelled"


#: States that never change again.
FINAL_STATES = (TrialState.COMPLETED, TrialState.FAILED, TrialState.PRUNED, TrialState.CANCELLED)
OPEN_STATES = (TrialState.QUEUED, TrialState.RUNNING)


def _one_of(column: str, states: type[enum.StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(str(state)) for state in states)})"


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


class Payload(Base):
    """A stored, signed object: an estimator, data, splits. Never changed once written."""

    __tablename__ = "payloads"
    # workers name files by it; all that refers to a payload refers to this column
    __table_args__ = (CheckConstraint("length(digest) = 64 AND ltrim(digest, '0123456789abcdef') = ''", name="digest"),)

    digest: Mapped[str] = mapped_column(String(64), primary_key=True, comment="SHA-256 of the content")
    kind: Mapped[str] = mapped_column(String(32))
    size: Mapped[int] = mapped_column(BigInteger, comment="bytes")
    signature: Mapped[str] = mapped_column(String(128), comment="Ed25519, of kind, digest and size")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())


class PayloadChunk(Base):
    """A part of a payload's content; the parts are joined by their position."""

    __tablename__ = "payload_chunks"

    digest: Mapped[str] = mapped_column(ForeignKey(Payload.digest), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class Search(Base):
    """One call of ``fit`` or ``submit``."""

    __tablename__ = "searches"
    __table_args__ = (
        CheckConstraint(_one_of("state", SearchState), name="state"),
        CheckConstraint("n_trials > 0 AND n_splits > 0", name="sizes"),
        CheckConstraint(_one_of("fit_mode", FitMode), name="fit_mode"),
    )

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    strategy: Mapped[str] = mapped_column(Text, comment="scikit-learn's class, such as GridSearchCV")
    state: Mapped[str] = mapped_column(String(16), default=SearchState.QUEUED)
    scoring: Mapped[str | None] = mapped_column(Text, comment="as given; NULL: the estimator's own score")
    refit_metric: Mapped[str] = mapped_column(Text, comment="the metric of trials.mean_test_score")
    n_trials: Mapped[int] = mapped_column(Integer)
    n_splits: Mapped[int] = mapped_column(Integer)
    random_state: Mapped[str | None] = mapped_column(Text, comment="of the estimator")
    estimator: Mapped[str] = mapped_column(Text, comment="its repr, shortened")
    evaluation_digest: Mapped[str] = mapped_column(ForeignKey(Payload.digest), comment="estimator, scorer, fit params")
    x_digest: Mapped[str] = mapped_column(ForeignKey(Payload.digest))
    y_digest: Mapped[str] = mapped_column(ForeignKey(Payload.digest))
    splits_digest: Mapped[str] = mapped_column(ForeignKey(Payload.digest))
    candidates_digest: Mapped[str] = mapped_column(ForeignKey(Payload.digest), comment="params as Python objects")
    sources_digest: Mapped[str | None] = mapped_column(
        ForeignKey(Payload.digest), comment="the script's own modules; NULL: it has none"
    )
    priority: Mapped[int] = mapped_column(Integer, default=0)
    fit_mode: Mapped[str] = mapped_column(String(16), default=FitMode.EXACT, server_default=FitMode.EXACT)
    trial_timeout: Mapped[float | None] = mapped_column(
        Double, comment="seconds that one attempt may take; NULL: the fleet's limit"
    )
    search_timeout: Mapped[float | None] = mapped_column(
        Double, comment="seconds after started_at at which the search is stopped"
    )
    python_version: Mapped[str] = mapped_column(String(32))
    needs_python: Mapped[str | None] = mapped_column(
        String(8), comment="minor version that its functions need; NULL: any"
    )
    tensorflow_version: Mapped[str | None] = mapped_column(String(32))
    keras_version: Mapped[str | None] = mapped_column(String(32))
    scikit_learn_version: Mapped[str] = mapped_column(String(32))
    gridfleet_version: Mapped[str] = mapped_column(String(32))
    submitted_by: Mapped[str] = mapped_column(Text, comment="user@host")
    session: Mapped[str | None] = mapped_column(
        Text, comment="the Python process that submitted it: a worker process evaluates trials of one; NULL: of any"
    )
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    paused_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="since when no trial of it starts")
    error: Mapped[str | None] = mapped_column(Text)
    signature: Mapped[str | None] = mapped_column(
        String(128), comment="Ed25519, of what a trial is evaluated by; NULL: of an older release"
    )
    splitter: Mapped[str | None] = mapped_column(Text, comment="cv as it was given, shortened")
    space_digest: Mapped[str | None] = mapped_column(
        String(64), comment="of the grid or the distributions; NULL: not seen into"
    )
    reuse: Mapped[bool] = mapped_column(
        server_default=false(), comment="whether its trials took results that were there when it was stored"
    )
    no_reuse: Mapped[str | None] = mapped_column(Text, comment="why trials have no reuse_key; NULL: all have")
    refit_of: Mapped[int | None] = mapped_column(
        ForeignKey("searches.id"), comment="the search whose best model its one trial fits; NULL: it is no refit"
    )
    model_key: Mapped[str | None] = mapped_column(
        String(72), comment="checks the signature of a refit's model: the public half of the workers' key"
    )
    keep_curves: Mapped[bool] = mapped_column(server_default=true(), comment="whether learning curves are stored")
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="since when its rows are being removed")
    git_commit: Mapped[str | None] = mapped_column(Text, comment="of the script's folder; NULL: it is in no repository")
    git_dirty: Mapped[bool | None] = mapped_column(comment="whether files that git tracks were changed since")
    packages_digest: Mapped[str | None] = mapped_column(
        String(64), comment="texts: the packages that were installed where it was submitted"
    )
    space: Mapped[str | None] = mapped_column(
        Text, comment="JSON: what may be proposed; NULL: its trials were stored with it"
    )
    sampler: Mapped[str | None] = mapped_column(Text, comment="JSON: what proposes, with its settings")
    seed: Mapped[int | None] = mapped_column(BigInteger, comment="of its proposals")
    lookahead: Mapped[int | None] = mapped_column(
        Integer, comment="proposal n is made when of the trials before it all but the last lookahead - 1 have ended"
    )
    asks_in_order: Mapped[bool | None] = mapped_column(
        comment="whether proposal n knows the results of 0 to n - lookahead and no others; else all that are there"
    )
    n_asked: Mapped[int | None] = mapped_column(Integer, comment="trials that were proposed so far")
    is_exhausted: Mapped[bool] = mapped_column(
        server_default=false(), comment="whether its space has nothing that was not proposed"
    )
    optuna_version: Mapped[str | None] = mapped_column(String(32), comment="where it was submitted")
    pruner: Mapped[str | None] = mapped_column(
        Text, comment="JSON: what stops poor trials, with its settings; NULL: nothing does"
    )
    monitor: Mapped[str | None] = mapped_column(
        Text, comment="what trials are compared by between epochs: score, or a curve"
    )


# "Pima" and "pima" would name the same view in SQLite, so names are unique without regard to case
Index("uq_searches_name", func.lower(Search.name), unique=True)
Index(
    "uq_searches_refit_of",
    Search.refit_of,
    unique=True,
    postgresql_where=text("refit_of IS NOT NULL"),
    sqlite_where=text("refit_of IS NOT NULL"),
)
# every claim asks which searches are paused, and every pass of the reconciler which are over time
for _name, _where in (
    ("ix_searches_paused", "paused_at IS NOT NULL"),
    ("ix_searches_unfinished", "finished_at IS NULL"),
):
    Index(_name, Search.id, postgresql_where=text(_where), sqlite_where=text(_where))


class Trial(Base):
    """One hyperparameter combination of one search."""

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("search_id", "number"),
        CheckConstraint(_one_of("state", TrialState), name="state"),
        CheckConstraint("(state = 'running') = (token IS NOT NULL)", name="token"),
        CheckConstraint(f"mean_test_score {FINITE}", name="mean_test_score_finite"),
        CheckConstraint(f"std_test_score {FINITE}", name="std_test_score_finite"),
        CheckConstraint("mean_test_score IS NULL OR state IN ('completed', 'failed', 'pruned')", name="score_is_final"),
        CheckConstraint("(finished_at IS NULL) = (state IN ('queued', 'running'))", name="finished_at"),
    )

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey(Search.id))
    number: Mapped[int] = mapped_column(Integer, comment="index in cv_results_")
    params: Mapped[dict[str, Any]] = mapped_column(Json)
    params_digest: Mapped[str] = mapped_column(String(64), comment="SHA-256 of params: equal params, equal digest")
    structure_digest: Mapped[str | None] = mapped_column(
        String(64), comment="of the params that change a model's structure: equal ones share compiled programs"
    )
    state: Mapped[str] = mapped_column(String(16), default=TrialState.QUEUED)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    worker_id: Mapped[str | None] = mapped_column(Text)
    token: Mapped[str | None] = mapped_column(String(32), comment="only its holder may write")
    failures: Mapped[int] = mapped_column(Integer, default=0)
    # since 0015 in a table of its own; dropped, it would take views of users with it that show all columns
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    deadline_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    published_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    publish_count: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    mean_test_score: Mapped[float | None] = mapped_column(Double)
    std_test_score: Mapped[float | None] = mapped_column(Double)
    mean_fit_time: Mapped[float | None] = mapped_column(Double, comment="seconds")
    fit_mode: Mapped[str | None] = mapped_column(
        String(16), comment="how its Keras models trained: exact, xla or keras"
    )
    fit_fallback_reason: Mapped[str | None] = mapped_column(Text, comment="why they trained as Keras does it")
    build_time: Mapped[float | None] = mapped_column(Double, comment="seconds of the fits for all but what follows")
    trace_time: Mapped[float | None] = mapped_column(Double, comment="seconds in which TensorFlow traced programs")
    compile_time: Mapped[float | None] = mapped_column(Double, comment="seconds in which XLA compiled them")
    train_time: Mapped[float | None] = mapped_column(Double, comment="seconds of training")
    score_time: Mapped[float | None] = mapped_column(Double, comment="seconds of predicting and scoring")
    record_time: Mapped[float | None] = mapped_column(Double, comment="seconds of writing scores and learning curves")
    peak_memory_mb: Mapped[int | None] = mapped_column(
        Integer, comment="most memory of the worker process in the last attempt, as far as it is known"
    )
    error_type: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text, comment="message and traceback")
    exception: Mapped[str | None] = mapped_column(Text, comment="what scikit-learn lets out of fit, as JSON")
    reuse_key: Mapped[str | None] = mapped_column(
        String(64), comment="of all that decides the result: equal keys, equal results"
    )
    # no foreign key, for that trial may be deleted
    reused_from: Mapped[int | None] = mapped_column(Id, comment="the trial whose result this is; NULL: it has its own")
    seed: Mapped[int | None] = mapped_column(
        BigInteger, comment="set before split 0, of each further split one more; NULL: the estimator has its own"
    )
    environment_digest: Mapped[str | None] = mapped_column(String(64), comment="texts: on what it was evaluated")
    # none_as_null: a trial of a grid has no sample, and not the sample null
    sample: Mapped[dict[str, Any] | None] = mapped_column(
        JsonOrNull, comment="of a proposal: its point in searches.space; NULL: it was stored with its search"
    )
    asked_without: Mapped[list[int] | None] = mapped_column(
        JsonOrNull, comment="of a proposal: numbers of earlier trials whose results it did not know"
    )
    iter: Mapped[int | None] = mapped_column(
        Integer, comment="of a halving search: the round, from 0; NULL: its search has none"
    )
    n_resources: Mapped[int | None] = mapped_column(Integer, comment="what a candidate gets in that round")
    pruned_split: Mapped[int | None] = mapped_column(
        Integer, comment="the split in or after which it was pruned; NULL: it was not"
    )
    pruned_epoch: Mapped[int | None] = mapped_column(
        Integer, comment="epochs of that split after which it was pruned; NULL: at its end"
    )
    pruned_value: Mapped[float | None] = mapped_column(Double, comment="what it was compared by then; NULL: not finite")


# the order of the reporter: best score of the last round first, the lower number among equals, as scikit-learn's
# best_index_
Index(
    "ix_trials_best",
    Trial.search_id,
    Trial.iter.desc(),
    Trial.mean_test_score.desc(),
    Trial.number,
    postgresql_where=text("mean_test_score IS NOT NULL"),
    sqlite_where=text("mean_test_score IS NOT NULL"),
)
Index("ix_trials_search_id_state", Trial.search_id, Trial.state)
Index(
    "ix_trials_reuse_key",
    Trial.reuse_key,
    postgresql_where=text("reuse_key IS NOT NULL"),
    sqlite_where=text("reuse_key IS NOT NULL"),
)
# the most memory of a search's trials, and whose results they took: a report of 100,000 trials reads no rows for them
Index(
    "ix_trials_peak_memory",
    Trial.search_id,
    Trial.peak_memory_mb,
    postgresql_where=text("peak_memory_mb IS NOT NULL"),
    sqlite_where=text("peak_memory_mb IS NOT NULL"),
)
Index(
    "ix_trials_reused_from",
    Trial.search_id,
    Trial.number,
    Trial.reused_from,
    postgresql_where=text("reused_from IS NOT NULL"),
    sqlite_where=text("reused_from IS NOT NULL"),
)
# which search has waited longest since one of its trials started
Index(
    "ix_trials_started",
    Trial.search_id,
    Trial.started_at,
    postgresql_where=text("started_at IS NOT NULL"),
    sqlite_where=text("started_at IS NOT NULL"),
)
_OF_QUEUED: dict[str, Any] = dict.fromkeys(("postgresql_where", "sqlite_where"), text("state = 'queued'"))
# the first of a search
Index("ix_trials_queued", Trial.search_id, Trial.id, **_OF_QUEUED)
# a worker asks for trials of the structure that it has a program for
Index(
    "ix_trials_queued_structure",
    Trial.search_id,
    Trial.structure_digest,
    Trial.id,
    **_OF_QUEUED,
)
# for which of them a message has to be sent
Index(
    "ix_trials_queued_published",
    Trial.search_id,
    Trial.published_at,
    Trial.id,
    **_OF_QUEUED,
)


class Lease(Base):
    """Until when a running trial is held, which heartbeats prolong: a row for each trial that runs, and no other.

    Apart from the trial's own row, which is wide and has many indexes. A heartbeat changes no column that an index has,
    and each page has room for the next version of its rows, so that PostgreSQL changes them in place (0015).
    """

    __tablename__ = "leases"

    trial_id: Mapped[int] = mapped_column(ForeignKey(Trial.id), primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(String(32), comment="of the attempt that holds it")
    worker_id: Mapped[str] = mapped_column(Text, comment="the worker process that holds it")
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, comment="held until then without a heartbeat")
    memory_mb: Mapped[int | None] = mapped_column(Integer, comment="most memory of the worker process so far")
    # no foreign key: all workers would lock the row of one search
    search_id: Mapped[int | None] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), comment="the trial's: of which search how many run"
    )


class SplitScore(Base):
    """What one trial scored on one split by one metric. NULL: not a finite number; the reason says which.

    The reason of a score that is 0 and was -0.0 is ``-0``, for SQLite has no such number.
    """

    __tablename__ = "split_scores"
    __table_args__ = (
        CheckConstraint(f"test_score {FINITE}", name="test_score_finite"),
        CheckConstraint(f"train_score {FINITE}", name="train_score_finite"),
    )

    trial_id: Mapped[int] = mapped_column(ForeignKey(Trial.id), primary_key=True, autoincrement=False)
    split: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    metric: Mapped[str] = mapped_column(Text, primary_key=True)
    test_score: Mapped[float | None] = mapped_column(Double)
    train_score: Mapped[float | None] = mapped_column(Double)
    test_score_reason: Mapped[str | None] = mapped_column(String(8), comment="nan, inf or -inf where it is NULL")
    train_score_reason: Mapped[str | None] = mapped_column(String(8), comment="nan, inf or -inf where it is NULL")
    fit_time: Mapped[float] = mapped_column(Double, comment="seconds")
    score_time: Mapped[float] = mapped_column(Double, comment="seconds")
    n_train: Mapped[int] = mapped_column(Integer)
    n_test: Mapped[int] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(Text, comment="traceback of the fit; the scores are then error_score")
    score_error: Mapped[str | None] = mapped_column(Text, comment="traceback of the scorer")


class Curve(Base):
    """A learning curve: one metric of Keras' History. The view ``epochs`` has a row for each of its values."""

    __tablename__ = "curves"

    trial_id: Mapped[int] = mapped_column(ForeignKey(Trial.id), primary_key=True, autoincrement=False)
    split: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    metric: Mapped[str] = mapped_column(Text, primary_key=True)
    values: Mapped[list[float | None]] = mapped_column(Floats, comment="one an epoch, from 0 on; NULL: not finite")


class Decision(enum.StrEnum):
    """What comes of a trial that was compared with others."""

    KEPT = "kept"
    PRUNED = "pruned"


class Report(Base):
    """How a trial stood when it was compared with others, and whether it went on: of its last attempt."""

    __tablename__ = "reports"
    __table_args__ = (
        CheckConstraint(_one_of("decision", Decision), name="decision"),
        CheckConstraint(f"value {FINITE}", name="value_finite"),
    )

    trial_id: Mapped[int] = mapped_column(ForeignKey(Trial.id), primary_key=True, autoincrement=False)
    split: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    step: Mapped[int] = mapped_column(
        Integer, primary_key=True, autoincrement=False, comment="epochs trained; 0: the split has ended"
    )
    value: Mapped[float | None] = mapped_column(
        Double,
        comment="greater is better: of a loss its negative, of an ended split the mean so far; NULL: not finite",
    )
    n_compared: Mapped[int] = mapped_column(Integer, comment="other trials that it was compared with")
    rank: Mapped[int | None] = mapped_column(
        Integer, comment="its place among them, 1 is the best; NULL: value is none"
    )
    decision: Mapped[str] = mapped_column(String(8))
    reported_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())


class TrialWarning(Base):
    """A warning that fits or scores of a trial gave: each text once, and how many fits gave it."""

    __tablename__ = "trial_warnings"

    trial_id: Mapped[int] = mapped_column(ForeignKey(Trial.id), primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(
        Integer, primary_key=True, autoincrement=False, comment="from 0, as they came"
    )
    category: Mapped[str] = mapped_column(Text, comment="its class, with its module unless that is builtins")
    message: Mapped[str] = mapped_column(Text)
    module: Mapped[str | None] = mapped_column(Text, comment="the module that warned; NULL: not known")
    n_fits: Mapped[int] = mapped_column(Integer, comment="how many of the trial's fits warned so")


class BestModel(Base):
    """The best model of a search, as its refit fitted it on a worker."""

    __tablename__ = "best_models"
    __table_args__ = (CheckConstraint("number >= 0 AND size > 0", name="sizes"),)

    trial_id: Mapped[int] = mapped_column(
        ForeignKey(Trial.id), primary_key=True, autoincrement=False, comment="the trial of the refit"
    )
    number: Mapped[int] = mapped_column(Integer, comment="the trial of the search whose params it has")
    digest: Mapped[str] = mapped_column(String(64), comment="SHA-256 of the content")
    size: Mapped[int] = mapped_column(BigInteger, comment="bytes")
    signature: Mapped[str] = mapped_column(String(128), comment="Ed25519, with the workers' key")
    python_version: Mapped[str] = mapped_column(String(32))
    tensorflow_version: Mapped[str | None] = mapped_column(String(32))
    keras_version: Mapped[str | None] = mapped_column(String(32))
    scikit_learn_version: Mapped[str] = mapped_column(String(32))
    gridfleet_version: Mapped[str] = mapped_column(String(32))


class BestModelChunk(Base):
    """A part of a model's content; the parts are joined by their position."""

    __tablename__ = "best_model_chunks"

    trial_id: Mapped[int] = mapped_column(ForeignKey(BestModel.trial_id), primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class Attempt(Base):
    """One try of one worker at one trial: the story of every try."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="outcome"),
        CheckConstraint(_one_of("outcome", Outcome), name="known_outcome"),
    )

    trial_id: Mapped[int] = mapped_column(ForeignKey(Trial.id), primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(String(32))
    worker_id: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(String(32), comment="NULL while it runs")
    error: Mapped[str | None] = mapped_column(Text)
    peak_memory_mb: Mapped[int | None] = mapped_column(
        Integer, comment="most memory of the worker process, as far as it is known"
    )


# what the workers did in the last hour
Index(
    "ix_attempts_ended",
    Attempt.ended_at,
    postgresql_where=text("ended_at IS NOT NULL"),
    sqlite_where=text("ended_at IS NOT NULL"),
)


class EventKind(enum.StrEnum):
    """What people are told of a search."""

    BEST = "best"  # a trial is better than all that were recorded before
    ENDED = "ended"
    FAILED = "failed"  # ended, and nothing was scored


class Event(Base):
    """What people are to be told of a search: written with what happened, in one transaction, and sent later."""

    __tablename__ = "events"
    __table_args__ = (CheckConstraint(_one_of("kind", EventKind), name="kind"),)

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey(Search.id))
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str | None] = mapped_column(String(16), comment="what the search ended as; NULL: it goes on")
    trial_id: Mapped[int | None] = mapped_column(Id, comment="the trial that is the new best; NULL: no trial's event")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    n_tries: Mapped[int] = mapped_column(Integer, server_default="0", comment="how often it was sent")
    tried_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="when it was sent last")
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="when it is sent again; NULL: at once")
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="when its receiver took it; NULL: not yet")
    error: Mapped[str | None] = mapped_column(Text, comment="why its receiver did not take it")


Index("ix_events_search_id", Event.search_id, Event.id)


class Tag(Base):
    """What people note of a search, to find it by."""

    __tablename__ = "tags"

    search_id: Mapped[int] = mapped_column(ForeignKey(Search.id), primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class StoredText(Base):
    """A text that many rows name, stored once: a source, a list of packages, what a machine is."""

    __tablename__ = "texts"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True, comment="SHA-256 of the content in UTF-8")
    content: Mapped[str] = mapped_column(Text)


class Source(Base):
    """The source text of a function or class of the script that travelled with a search."""

    __tablename__ = "sources"

    search_id: Mapped[int] = mapped_column(ForeignKey(Search.id), primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(Text, primary_key=True, comment="of the function or class")
    digest: Mapped[str | None] = mapped_column(
        ForeignKey(StoredText.digest), comment="texts: its source; NULL: there is none to be had"
    )


class Worker(Base):
    """One worker process."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    hostname: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    python_version: Mapped[str] = mapped_column(String(32))
    tensorflow_version: Mapped[str | None] = mapped_column(String(32))
    keras_version: Mapped[str | None] = mapped_column(String(32))
    scikit_learn_version: Mapped[str] = mapped_column(String(32))
    gridfleet_version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now())
    stopped_reason: Mapped[str | None] = mapped_column(Text, comment="why its worker took itself out; NULL: it did not")
    n_cores: Mapped[int | None] = mapped_column(Integer, comment="of its machine or container")
    memory_limit_mb: Mapped[int | None] = mapped_column(Integer, comment="what it may take")
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="NULL: not known to have ended")
    # no default of Python's: workers may not name it when they add their rows
    draining: Mapped[bool] = mapped_column(
        server_default=false(), comment="its worker is to take nothing new, and to end"
    )


class ReconcilerPass(Base):
    """When a reconciler last looked after the fleet: one row."""

    __tablename__ = "reconciler"
    __table_args__ = (CheckConstraint("id = 1", name="id"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False, comment="1: there is one row")
    hostname: Mapped[str | None] = mapped_column(Text)
    pid: Mapped[int | None] = mapped_column(Integer)
    last_pass_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="NULL: not since the table is there")
    notifies: Mapped[bool] = mapped_column(
        server_default=false(), comment="whether events are written, for somebody is told of them"
    )


class FleetIdentity(Base):
    """Which fleet this is: the only row of its table."""

    __tablename__ = "fleet_identity"

    id: Mapped[str] = mapped_column(
        Text, primary_key=True, comment="random; its keys on the broker are gridfleet:<id>:…"
    )

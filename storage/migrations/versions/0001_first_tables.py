"""The first tables and views."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

import gridfleet.storage.database.times

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    _create_tables()
    _create_views()


def _create_tables() -> None:
    op.create_table(
        "payloads",
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of the content"),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes"),
        sa.Column(
            "signature", sa.String(length=64), nullable=False, comment="HMAC-SHA-256 of kind, digest and content"
        ),
        sa.Column("created_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_payloads")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("python_version", sa.String(length=32), nullable=False),
        sa.Column("tensorflow_version", sa.String(length=32), nullable=True),
        sa.Column("keras_version", sa.String(length=32), nullable=True),
        sa.Column("scikit_learn_version", sa.String(length=32), nullable=False),
        sa.Column("gridfleet_version", sa.String(length=32), nullable=False),
        sa.Column("started_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "payload_chunks",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["payloads.digest"], name=op.f("fk_payload_chunks_digest")),
        sa.PrimaryKeyConstraint("digest", "position", name=op.f("pk_payload_chunks")),
    )
    op.create_table(
        "searches",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False, comment="scikit-learn's class, such as GridSearchCV"),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("scoring", sa.Text(), nullable=True, comment="as given; NULL: the estimator's own score"),
        sa.Column("refit_metric", sa.Text(), nullable=False, comment="the metric of trials.mean_test_score"),
        sa.Column("n_trials", sa.Integer(), nullable=False),
        sa.Column("n_splits", sa.Integer(), nullable=False),
        sa.Column("random_state", sa.Text(), nullable=True, comment="of the estimator"),
        sa.Column("estimator", sa.Text(), nullable=False, comment="its repr, shortened"),
        sa.Column("evaluation_digest", sa.String(length=64), nullable=False, comment="estimator, scorer, fit params"),
        sa.Column("x_digest", sa.String(length=64), nullable=False),
        sa.Column("y_digest", sa.String(length=64), nullable=False),
        sa.Column("splits_digest", sa.String(length=64), nullable=False),
        sa.Column("candidates_digest", sa.String(length=64), nullable=False, comment="params as Python objects"),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("python_version", sa.String(length=32), nullable=False),
        sa.Column("tensorflow_version", sa.String(length=32), nullable=True),
        sa.Column("keras_version", sa.String(length=32), nullable=True),
        sa.Column("scikit_learn_version", sa.String(length=32), nullable=False),
        sa.Column("gridfleet_version", sa.String(length=32), nullable=False),
        sa.Column("submitted_by", sa.Text(), nullable=False, comment="user@host"),
        sa.Column("created_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.Column("started_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("finished_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('queued', 'running', 'completed', 'cancelled')", name=op.f("ck_searches_state")),
        sa.CheckConstraint("n_trials > 0 AND n_splits > 0", name=op.f("ck_searches_sizes")),
        sa.ForeignKeyConstraint(["candidates_digest"], ["payloads.digest"], name=op.f("fk_searches_candidates_digest")),
        sa.ForeignKeyConstraint(["evaluation_digest"], ["payloads.digest"], name=op.f("fk_searches_evaluation_digest")),
        sa.ForeignKeyConstraint(["splits_digest"], ["payloads.digest"], name=op.f("fk_searches_splits_digest")),
        sa.ForeignKeyConstraint(["x_digest"], ["payloads.digest"], name=op.f("fk_searches_x_digest")),
        sa.ForeignKeyConstraint(["y_digest"], ["payloads.digest"], name=op.f("fk_searches_y_digest")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_searches")),
    )
    op.create_table(
        "trials",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("search_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="index in cv_results_"),
        sa.Column(
            "params", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column(
            "params_digest",
            sa.String(length=64),
            nullable=False,
            comment="SHA-256 of params: equal params, equal digest",
        ),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("token", sa.String(length=32), nullable=True, comment="only its holder may write"),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("deadline_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("not_before", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("published_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("publish_count", sa.Integer(), nullable=False),
        sa.Column("created_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.Column("started_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("finished_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("mean_test_score", sa.Double(), nullable=True),
        sa.Column("std_test_score", sa.Double(), nullable=True),
        sa.Column("mean_fit_time", sa.Double(), nullable=True, comment="seconds"),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True, comment="message and traceback"),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (state IN ('queued', 'running'))", name=op.f("ck_trials_finished_at")
        ),
        sa.CheckConstraint("(state = 'running') = (token IS NOT NULL)", name=op.f("ck_trials_token")),
        sa.CheckConstraint(
            "mean_test_score IS NULL OR state IN ('completed', 'failed', 'pruned')",
            name=op.f("ck_trials_score_is_final"),
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'completed', 'failed', 'pruned', 'cancelled')", name=op.f("ck_trials_state")
        ),
        sa.CheckConstraint(
            "mean_test_score BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308",
            name=op.f("ck_trials_mean_test_score_finite"),
        ),
        sa.CheckConstraint(
            "std_test_score BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308",
            name=op.f("ck_trials_std_test_score_finite"),
        ),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_trials_search_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint("search_id", "number", name=op.f("uq_trials_search_id_number")),
    )
    op.create_index(
        "ix_trials_best",
        "trials",
        ["search_id", sa.literal_column("mean_test_score DESC"), "number"],
        unique=False,
        postgresql_where=sa.text("mean_test_score IS NOT NULL"),
        sqlite_where=sa.text("mean_test_score IS NOT NULL"),
    )
    op.create_index(
        "ix_trials_queued",
        "trials",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
        sqlite_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_trials_running",
        "trials",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
        sqlite_where=sa.text("state = 'running'"),
    )
    op.create_index("ix_trials_search_id_state", "trials", ["search_id", "state"], unique=False)
    op.create_table(
        "attempts",
        sa.Column(
            "trial_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("started_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.Column("ended_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True, comment="NULL while it runs"),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name=op.f("ck_attempts_outcome")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_attempts_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "attempt", name=op.f("pk_attempts")),
    )
    op.create_table(
        "epochs",
        sa.Column(
            "trial_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("split", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True, comment="NULL: not finite"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_epochs_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "split", "epoch", "metric", name=op.f("pk_epochs")),
    )
    op.create_table(
        "split_scores",
        sa.Column(
            "trial_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("split", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("test_score", sa.Double(), nullable=True),
        sa.Column("train_score", sa.Double(), nullable=True),
        sa.Column("test_score_reason", sa.String(length=8), nullable=True, comment="nan, inf or -inf where it is NULL"),
        sa.Column(
            "train_score_reason", sa.String(length=8), nullable=True, comment="nan, inf or -inf where it is NULL"
        ),
        sa.Column("fit_time", sa.Double(), nullable=False, comment="seconds"),
        sa.Column("score_time", sa.Double(), nullable=False, comment="seconds"),
        sa.Column("n_train", sa.Integer(), nullable=False),
        sa.Column("n_test", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True, comment="traceback of the fit; the scores are then error_score"),
        sa.CheckConstraint(
            "test_score BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308",
            name=op.f("ck_split_scores_test_score_finite"),
        ),
        sa.CheckConstraint(
            "train_score BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308",
            name=op.f("ck_split_scores_train_score_finite"),
        ),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_split_scores_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "split", "metric", name=op.f("pk_split_scores")),
    )
    op.create_index("uq_searches_name", "searches", [sa.text("lower(name)")], unique=True)


def _create_views() -> None:
    postgresql_now = op.get_bind().dialect.name == "postgresql"
    seconds_running = (
        "EXTRACT(EPOCH FROM COALESCE(s.finished_at, clock_timestamp()) - s.started_at)"
        if postgresql_now
        else "(julianday(COALESCE(s.finished_at, 'now')) - julianday(s.started_at)) * 86400.0"
    )
    op.execute(
        """
        CREATE VIEW leaderboard AS
        SELECT s.name AS search,
               RANK() OVER (PARTITION BY t.search_id ORDER BY t.mean_test_score DESC) AS rank_test_score,
               t.number, t.mean_test_score, t.std_test_score, t.params, t.mean_fit_time, t.id AS trial_id
          FROM trials t JOIN searches s ON s.id = t.search_id
         WHERE t.mean_test_score IS NOT NULL
        """
    )
    op.execute(
        """
        CREATE VIEW best_trials AS
        SELECT s.name AS search, s.id AS search_id, s.state, s.refit_metric AS metric,
               t.mean_test_score AS best_score, t.std_test_score, t.params AS best_params,
               t.number, t.id AS trial_id
          FROM searches s
          LEFT JOIN trials t ON t.id = (
               SELECT b.id FROM trials b
                WHERE b.search_id = s.id AND b.mean_test_score IS NOT NULL
                ORDER BY b.mean_test_score DESC, b.number LIMIT 1)
        """
    )
    op.execute(
        f"""
        CREATE VIEW search_progress AS
        SELECT c.*,
               CASE WHEN c.done < c.total AND c.done > 0 AND c.state = 'running'
                    THEN c.seconds_running / c.done * (c.total - c.done) END AS seconds_left
          FROM (SELECT s.name AS search, s.id AS search_id, s.state, s.n_trials AS total,
                       COUNT(CASE WHEN t.state = 'queued' THEN 1 END) AS queued,
                       COUNT(CASE WHEN t.state = 'running' THEN 1 END) AS running,
                       COUNT(CASE WHEN t.state = 'completed' THEN 1 END) AS completed,
                       COUNT(CASE WHEN t.state = 'failed' THEN 1 END) AS failed,
                       COUNT(CASE WHEN t.state = 'pruned' THEN 1 END) AS pruned,
                       COUNT(CASE WHEN t.state = 'cancelled' THEN 1 END) AS cancelled,
                       COUNT(CASE WHEN t.state NOT IN ('queued', 'running') THEN 1 END) AS done,
                       {seconds_running} AS seconds_running
                  FROM searches s JOIN trials t ON t.search_id = s.id
                 GROUP BY s.id, s.name, s.state, s.n_trials, s.started_at, s.finished_at) c
        """  # noqa: S608 - one of two constants
    )

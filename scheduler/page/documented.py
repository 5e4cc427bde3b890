"""The queries of docs/sql.md, for a search of one's own."""

from __future__ import annotations

#: Title and query; those that are about one search are about one that is named pima.
QUERIES = (
    (
        "The best score of each search",
        """\
SELECT search, state, metric, best_score, std_test_score, best_params
  FROM best_trials
 ORDER BY search;""",
    ),
    (
        "The leaderboard of a search",
        """\
SELECT rank_test_score, mean_test_score, std_test_score, number, params
  FROM leaderboard
 WHERE search = 'pima'
 ORDER BY rank_test_score, number
 LIMIT 10;""",
    ),
    (
        "A search's own view, with one typed column per hyperparameter",
        """\
SELECT optimizer, batch_size, mean_test_score
  FROM "pima"
 WHERE batch_size BETWEEN 10 AND 20
   AND mean_test_score IS NOT NULL
 ORDER BY rank_test_score, number;""",
    ),
    (
        "The effect of one hyperparameter",
        """\
SELECT optimizer,
       COUNT(*) AS trials,
       AVG(mean_test_score) AS average_score,
       MAX(mean_test_score) AS best_score
  FROM "pima"
 WHERE mean_test_score IS NOT NULL
 GROUP BY optimizer
 ORDER BY best_score DESC;""",
    ),
    (
        "The spread of the scores over the splits",
        """\
SELECT t.number,
       MIN(p.test_score) AS worst_split,
       MAX(p.test_score) AS best_split,
       MAX(p.test_score) - MIN(p.test_score) AS spread,
       t.mean_test_score
  FROM split_scores p
  JOIN trials t ON t.id = p.trial_id
  JOIN searches s ON s.id = t.search_id
 WHERE s.name = 'pima' AND p.metric = s.refit_metric
 GROUP BY t.id, t.number, t.mean_test_score
 ORDER BY spread DESC, t.number;""",
    ),
    (
        "The learning curve of the best trial",
        """\
SELECT e.epoch, e.metric, AVG(e.value) AS value
  FROM epochs e
  JOIN best_trials b ON b.trial_id = e.trial_id
 WHERE b.search = 'pima'
 GROUP BY e.epoch, e.metric
 ORDER BY e.metric, e.epoch;""",
    ),
    (
        "The trials that failed, and their errors",
        """\
SELECT t.number, t.params, t.error_type,
       SUBSTR(t.error, LENGTH(t.error) - 59) AS end_of_error
  FROM trials t
  JOIN searches s ON s.id = t.search_id
 WHERE s.name = 'pima' AND t.state = 'failed'
 ORDER BY t.number;""",
    ),
    (
        "Progress and seconds left",
        """\
SELECT search, state, done, running, queued, failed, total, seconds_left
  FROM search_progress
 ORDER BY search_id DESC;""",
    ),
    (
        "What each worker did, and how long it trained",
        """\
SELECT t.worker_id,
       COUNT(*) AS trials,
       COUNT(CASE WHEN t.state = 'failed' THEN 1 END) AS failed,
       SUM(t.mean_fit_time * s.n_splits) AS fit_seconds,
       MAX(t.mean_fit_time * s.n_splits) AS longest_trial
  FROM trials t
  JOIN searches s ON s.id = t.search_id
 WHERE s.name = 'pima' AND t.worker_id IS NOT NULL
 GROUP BY t.worker_id
 ORDER BY t.worker_id;""",
    ),
    (
        "Trials with more than one attempt, and why",
        """\
SELECT t.number, a.attempt, a.worker_id, a.outcome, a.error
  FROM attempts a
  JOIN trials t ON t.id = a.trial_id
  JOIN searches s ON s.id = t.search_id
 WHERE s.name = 'pima' AND t.attempt > 1
 ORDER BY t.number, a.attempt;""",
    ),
    (
        "Which trials were pruned, when, and against whom",
        """\
SELECT t.number, r.split, r.step AS epochs, r.value, r.rank, r.n_compared,
       (SELECT MAX(o.value)
          FROM reports o
          JOIN trials p ON p.id = o.trial_id
         WHERE p.search_id = t.search_id AND o.split = r.split AND o.step = r.step
           AND o.reported_at <= r.reported_at) AS best_there
  FROM reports r
  JOIN trials t ON t.id = r.trial_id
  JOIN searches s ON s.id = t.search_id
 WHERE s.name = 'pima' AND r.decision = 'pruned'
 ORDER BY t.number;""",
    ),
)


def queries_about(name: str) -> list[tuple[str, str]]:
    """Return the title and the text of each query, about a search of this name."""
    literal, identifier = name.replace("'", "''"), name.replace('"', '""')
    return [
        (title, query.replace("'pima'", f"'{literal}'").replace('"pima"', f'"{identifier}"'))
        for title, query in QUERIES
    ]

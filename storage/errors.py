"""Every error that gridfleet raises by itself, one class each; and how any error is said in one line."""


class GridfleetError(Exception):
    """Base of all errors of gridfleet."""

    #: What a command ends with that fails so.
    exit_status = 1

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows of it, as IPython asks: what was wrong and why, and no frames of ours."""
        lines, error = [f"{type(self).__name__}: {self}"], self.__cause__
        while error is not None:
            lines.append(f"for {type(error).__name__}: {error}")
            error = error.__cause__
        return lines


class SettingsError(GridfleetError, ValueError):
    """A ``GRIDFLEET_*`` setting is missing or wrong."""


class DatabaseUnreachableError(GridfleetError, ConnectionError):
    """The database does not answer."""


class NoConnectionLeftError(DatabaseUnreachableError):
    """The database answers, and others have all of its connections."""


class BrokerUnreachableError(GridfleetError, ConnectionError):
    """The broker does not answer."""


class SchemaVersionError(GridfleetError):
    """The tables were made by another release than the one that runs."""


class BackupError(GridfleetError, RuntimeError):
    """A backup was refused, or could not be written or restored."""


class PayloadError(GridfleetError):
    """A payload is missing, damaged, or can't be loaded."""


class PayloadGoneError(PayloadError):
    """A payload was removed, for nothing named it yet, before the search was stored that does."""


class MissingCodeError(PayloadError):
    """A payload needs a package, or a release of one, that is not installed here."""


class PayloadSignatureError(PayloadError):
    """A payload or a search was not signed with this process's secret key, or was changed since."""


class SampleError(GridfleetError, ValueError):
    """A sample is no point of the space that it was proposed in."""


class ProposalError(GridfleetError, RuntimeError):
    """What a search evaluates next can't be told from its rows."""


class DataNotThereError(GridfleetError):
    """Data by reference are not to be had on this host: no such file, no right to read it, or another content."""


class InvalidDataError(GridfleetError, ValueError):
    """A data file has not what a reference means: no such array or column, Python objects, or it is damaged."""


class NotPicklableError(GridfleetError, TypeError):
    """An object that has to travel to the workers can't be pickled."""


class InvalidSearchError(GridfleetError, ValueError):
    """A search was refused before anything of it was stored."""


class NameTakenError(InvalidSearchError):
    """Another search has this name already."""


class SearchNotFoundError(GridfleetError, LookupError):
    """No search has this name or id."""


class TrialNotFoundError(GridfleetError, LookupError):
    """The search has no trial of this number."""


class WorkerNotFoundError(GridfleetError, LookupError):
    """No worker that is there has this name."""


class MissingPackageError(GridfleetError, ImportError):
    """What was asked for needs a package of one of gridfleet's extras, which is not installed."""


class SearchNotFinishedError(GridfleetError):
    """The search has no result yet that could be asked for."""


class SearchCancelledError(GridfleetError):
    """The search was cancelled, so it has no complete result."""


class BestModelError(GridfleetError):
    """A search has no best model on the fleet, or one that can't be loaded here."""


class SearchInUseError(GridfleetError, RuntimeError):
    """A search can't go, or change its name: its trials run, or somebody's view is made of its view."""


class RekeyError(GridfleetError, RuntimeError):
    """The fleet can't get another secret key now."""


class QueryError(GridfleetError):
    """The database refuses a query that somebody wrote, or it takes too long."""


class NothingToDrawError(GridfleetError, ValueError):
    """A search has not what a figure shows: no score yet, one hyperparameter only, no learning curves."""


class ExportError(GridfleetError):
    """A search can't be written where somebody wants it."""


class NoTrialCompletedError(GridfleetError, ValueError):
    """Of a search, each trial failed or was pruned, so that there is none to fit."""


class TrialFailedError(GridfleetError):
    """A trial failed under ``error_score="raise"`` and its own exception could not travel back."""


class LocalFleetError(GridfleetError, RuntimeError):
    """The fleet of this folder could not be started."""


class WebhookError(GridfleetError):
    """Whoever is to be told of an event did not take it."""


class UnfitWorkerError(GridfleetError):
    """A worker that starts lacks what it needs to evaluate trials: a folder that it can write, room on its disk."""

    exit_status = 3


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, of the database's own words where SQLAlchemy wraps them."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""What a search looks like, from Python: the methods that a handle and a fitted search share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from gridfleet.scheduler.results.frames import without_our_frames
from gridfleet.storage.database.connection import Database

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects


class Plots:
    """Draws a stored search with plotly, which comes with ``pip install 'gridfleet[page]'``.

    Each method returns a figure of all that is recorded by now. In a notebook a cell shows it; ``figure.show()`` opens
    a browser, ``figure.write_html(file)`` writes a file.
    """

    @abstractmethod
    def _stored_search(self) -> tuple[Database, int]:
        """Return where the search is stored, and its id."""

    @without_our_frames
    def plot_history(self) -> plotly.graph_objects.Figure:
        """Draw the score of each trial, and the best so far.

        Returns
        -------
        plotly.graph_objects.Figure
            Of more than 2,000 trials the best, and a fair sample; its title says so.

        Raises
        ------
        NothingToDrawError
            If no trial has a score yet.
        MissingPackageError
            If plotly is not installed.
        """
        from gridfleet.scheduler.figures.history import history

        return history(*self._stored_search())

    @without_our_frames
    def plot_parallel(self) -> plotly.graph_objects.Figure:
        """Draw parallel coordinates: a line through the hyperparameters of each trial, to its score.

        Returns
        -------
        plotly.graph_objects.Figure
            Drag along an axis to see only the trials with these values.

        Raises
        ------
        NothingToDrawError
            If no trial has a score yet, or all have the same hyperparameters.
        MissingPackageError
            If plotly is not installed.
        """
        from gridfleet.scheduler.figures.parallel import parallel

        return parallel(*self._stored_search())

    @without_our_frames
    def plot_importances(self) -> plotly.graph_objects.Figure:
        """Draw how much each hyperparameter decides about which trials are good, by Optuna's PED-ANOVA.

        Returns
        -------
        plotly.graph_objects.Figure

        Raises
        ------
        NothingToDrawError
            If fewer than two trials have a score, or fewer than two hyperparameters have two values.
        MissingPackageError
            If plotly or Optuna is not installed.
        """
        from gridfleet.scheduler.figures.importances import importances

        return importances(*self._stored_search())

    @without_our_frames
    def plot_slice(self, name: str | None = None) -> plotly.graph_objects.Figure:
        """Draw the scores over each hyperparameter by itself.

        Parameters
        ----------
        name : str, default=None
            One hyperparameter only, as in ``param_grid``; None: the first twelve that have two values.

        Returns
        -------
        plotly.graph_objects.Figure

        Raises
        ------
        NothingToDrawError
            If no trial has a score yet, or no hyperparameter has two values or this name.
        MissingPackageError
            If plotly is not installed.
        """
        from gridfleet.scheduler.figures.slices import slices

        return slices(*self._stored_search(), name=name)

    @without_our_frames
    def plot_curves(self, number: int | None = None) -> plotly.graph_objects.Figure:
        """Draw the learning curves of Keras models: mean and deviation over the splits, the best trial in front.

        Parameters
        ----------
        number : int, default=None
            Of one trial, by its index in ``cv_results_``; None: of the best five.

        Returns
        -------
        plotly.graph_objects.Figure

        Raises
        ------
        NothingToDrawError
            If there are no learning curves.
        MissingPackageError
            If plotly is not installed.
        """
        from gridfleet.scheduler.figures.curves import curves

        return curves(*self._stored_search(), number=number)

    @without_our_frames
    def plot_folds(self, metric: str | None = None, number: int | None = None) -> plotly.graph_objects.Figure:
        """Draw the scores of the best trials split by split, and their means.

        Parameters
        ----------
        metric : str, default=None
            Of several; None: the one that ranks the trials.
        number : int, default=None
            One trial only, by its index in ``cv_results_``; None: the best ten.

        Returns
        -------
        plotly.graph_objects.Figure

        Raises
        ------
        NothingToDrawError
            If there are no scores, or none by this metric.
        MissingPackageError
            If plotly is not installed.
        """
        from gridfleet.scheduler.figures.folds import folds

        return folds(*self._stored_search(), metric=metric, number=number)

    @without_our_frames
    def to_optuna(self) -> optuna.Study:
        """Return the search as a study of Optuna in memory, with all its trials.

        Returns
        -------
        optuna.Study
            Its direction is ``maximize``. ``gridfleet export NAME --to optuna`` writes it into a database that
            optuna-dashboard opens.

        Raises
        ------
        MissingPackageError
            If Optuna is not installed.
        """
        from gridfleet.scheduler.figures.study import study

        return study(*self._stored_search())

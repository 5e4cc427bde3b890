"""The main process of a worker: it starts the processes that evaluate trials, watches them and lets go of trials."""

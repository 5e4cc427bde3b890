"""What a worker ends with, beside 0 after a signal, 1 for an error and `UnfitWorkerError.exit_status`."""

#: It handed back one trial after the other for reasons of its own, and took itself out.
TOOK_ITSELF_OUT = 4

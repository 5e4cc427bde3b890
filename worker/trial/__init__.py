"""One trial in one worker process: claimed, held, evaluated, recorded."""

"""The broker as a worker and a publisher see it: the Celery app, the one form of message, the way in and out."""

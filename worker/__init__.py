"""What runs on the fleet: one Celery task that claims a trial, cross-validates it and records its scores."""

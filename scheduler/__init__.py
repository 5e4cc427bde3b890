"""What the user holds: searches are validated, stored, enqueued, watched and read here."""

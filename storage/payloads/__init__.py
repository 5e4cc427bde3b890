"""Estimators and arrays: content-addressed, signed, chunked in SQL, kept in a bounded cache on each host."""

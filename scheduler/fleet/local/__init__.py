"""The embedded fleet of a folder: broker, database and worker processes of one machine.

A supervisor process owns them. It lives as long as the script (or ``gridfleet up``) that started it: it
watches the pipe on its standard input, which the kernel closes however its owner ends.
"""

"""Configuration, planning, running, search, flight validation and the command line."""

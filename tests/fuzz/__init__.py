"""Parsers of what comes from outside, each as a function of bytes that must give a value or an `EdvitError`."""

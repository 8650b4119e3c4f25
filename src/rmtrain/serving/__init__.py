"""Rewards for other programs, in Python and over HTTP."""

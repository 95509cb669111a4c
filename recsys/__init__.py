"""Recommenders, losses and verdicts. Knows no platform; importing it changes nothing and imports nothing heavy."""

"""The record of every measurement, statistics on it, and pages drawn from it."""

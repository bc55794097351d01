"""Workloads: data, splits, metric and reference networks."""

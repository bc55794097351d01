"""Workloads: data, splits, metric and reference networks.

workload    `workload(name)`, `parse_ref("fashion/lenet5")`, `Workload`, `Splits`, `Split`
summary     `workload_summary(name)`: what `flatsat workloads` shows
nets        `build(network, ...)`, `cost(network, ...)`, `width_for_macs(network, ...)`
fit         `fit`, `evaluate`, `predict`: the one training loop
reference   `reference(workload, network)`: trained once by seed, cached

Only `nets`, `fit` and `reference` import torch.
"""

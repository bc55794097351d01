"""The reference networks as torch modules, built from the numbers in `architectures`."""

from flatsat.datasets.architectures import Cost, cost, network_names, width_for_macs
from flatsat.datasets.nets.build import build, on_meta

__all__ = ["Cost", "build", "cost", "network_names", "on_meta", "width_for_macs"]

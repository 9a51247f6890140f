"""Workloads, their replay against a store, and benchmarks against a C program. Only the command line imports this.

- ``workloads`` what a frontend asks, and ``blocks`` the KV bytes to store and compare: both pure
- ``replay`` the main job
"""

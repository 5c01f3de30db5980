"""Starts runs where they belong: local processes, machines over ssh, TPU VMs, Slurm, Kubernetes.

Each target is a pure function from a description to commands or text; `--dry-run` prints exactly that.
"""

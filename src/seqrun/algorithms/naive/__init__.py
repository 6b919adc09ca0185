"""Naive: fine-tuning, task after task, with nothing against forgetting.

Paper: none; the lower reference of every comparison ("SGD", "fine-tuning").
Loss: cross-entropy on the current task's batch.
"""

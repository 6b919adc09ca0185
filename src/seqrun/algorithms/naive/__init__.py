"""Naive: fine-tuning on one task after another, without any measure against forgetting.

Paper: none; the lower reference of every comparison ("SGD", "fine-tuning").
Loss: cross-entropy on the current task's batch.
"""

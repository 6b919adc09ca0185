"""Continual-learning algorithms: one folder each, with a card and two native twins."""

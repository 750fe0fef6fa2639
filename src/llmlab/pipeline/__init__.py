"""Experiments of several runs, each stage a run folder that begins with those before it."""

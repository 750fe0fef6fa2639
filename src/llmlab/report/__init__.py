"""Run folders compared: tables, figures and a verdict."""

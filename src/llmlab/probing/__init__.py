"""Probes of trained models: a labelled set of texts, scored by one protocol whatever the model was trained on."""

"""Methods of alignment on a problem whose best policy is known (`llmlab oracle`)."""

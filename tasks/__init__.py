"""The verbs: one file is one Prefect task. Opens refs, calls recsys, publishes, records."""

"""What users ask for, resolved: names become models, machines and drafts; values are checked."""

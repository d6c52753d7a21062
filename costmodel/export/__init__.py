"""Export of plans to serving engines: one module per engine, `export_plan` on top."""

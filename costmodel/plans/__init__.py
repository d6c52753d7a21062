"""File formats shared by planner and executor: strategy, workload, policy table, plan, measurement."""

"""Which weights stay: methods, scores, ranks, arbiters, allocations, masks, schedules."""

"""How fast the engine is beside the released codes, measured in one process."""

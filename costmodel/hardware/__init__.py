"""Hardware profiles: datasheet peaks, calibrated efficiencies, profile files and the shipped catalog."""

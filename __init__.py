"""flatfleet: run any FlatMachine over thousands of work items with a fleet of self-registering worker machines."""

"""Where work runs: `placement` decides on how many processes and devices, `connect` gets Ray."""

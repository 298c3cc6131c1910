"""What host and board agree on: the bundle, the plan, devices, errors. numpy at most."""

"""What the machine is: the facts that the rooms above plan with."""

"""Actuators change the machine, and can always put back what they found."""

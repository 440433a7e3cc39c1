"""MVM to MVM: who is in the fleet, whose channels each host looks after, and how a domain moves."""

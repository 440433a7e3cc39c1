"""A web server under a varying load, its SLA agent, and a broker that sets its speed by five policies in turn."""

"""``pyfastv bench``: what a setting costs on this machine, beside what it costs in theory."""

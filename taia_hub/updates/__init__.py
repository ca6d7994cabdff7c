"""Where updates come from, and how one is switched."""

"""Documents as a person reads them: laid out, sampled from a run, and shown in the terminal."""

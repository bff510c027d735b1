"""Many runs: train every row of a study, and compare finished runs."""

"""What the benchmark commands measure."""

"""What a step minimises, one file an objective; each reads named columns of packed rows and gives sums, never means."""

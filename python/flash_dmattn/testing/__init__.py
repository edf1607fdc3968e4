"""What every backend is tested against: one reference, one table of cases, one rule of comparison."""
